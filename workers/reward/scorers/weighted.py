"""Combine several scorers: the weighted sum of their rewards, each kept as a part.

Runs in a scoring process, one scorer after another. A failed scorer is not replaced by a zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from workers.reward.base import (
    ABSTAINED,
    RewardResult,
    RewardSample,
    Scorer,
    hand_folder,
    joint_check,
    reads_images,
    score_group,
    score_sample,
    takes_batch,
    takes_group,
)
from workers.reward.scorers.models.judge_model import JudgeEngines, on_engines


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighted:
    """Weighted sum of scorers: sum_k weights[k] * scorers[k](sample).

    Parts are each scorer's unweighted reward under its name, and its own parts under "name/part".
    If one scorer fails, the sample fails; if one abstains, the sum abstains. Texts of a scorer are
    kept under "name/text".

    Attributes:
        scorers: by name.
        weights: by the same names; they need not sum to one.
    """

    scorers: Mapping[str, Scorer]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Plain dicts, whatever mapping configuration came as: they travel to the scoring processes.
        object.__setattr__(self, "scorers", dict(self.scorers))
        object.__setattr__(self, "weights", {k: float(w) for k, w in self.weights.items()})
        if not self.scorers:
            raise ValueError("scorers must name at least one scorer, got none")
        if set(self.scorers) != set(self.weights):
            raise ValueError(
                f"weights must name the scorers {sorted(self.scorers)}, got {sorted(self.weights)}"
            )
        for name, scorer in self.scorers.items():
            if not callable(scorer):
                raise ValueError(f"scorer {name!r} must be callable, got {scorer!r}")

    @property
    def whole_group(self) -> bool:
        """True where one of the scorers wants all siblings of a prompt."""
        return any(takes_group(scorer) for scorer in self.scorers.values())

    @property
    def batches(self) -> bool:
        """True where one of the scorers wants many samples in one call."""
        return any(takes_batch(scorer) for scorer in self.scorers.values())

    @property
    def reads_images(self) -> bool:
        """True where one of the scorers reads the images of prompts."""
        return any(map(reads_images, self.scorers.values()))

    @property
    def check(self) -> Callable[[], None] | None:
        """The checks of the scorers that are too heavy to be tried; None where there is none."""
        return joint_check(self.scorers.values())

    def on_engines(self, engines: JudgeEngines) -> Weighted:
        """Return the sum with the run's own engines filled into its judges."""
        filled = {name: on_engines(scorer, engines) for name, scorer in self.scorers.items()}
        return replace(self, scorers=filled)

    def keep_in(self, folder: str) -> None:
        """Hand the run's folder to the scorers that write files."""
        hand_folder(self.scorers.values(), folder)

    def prepare(self) -> None:
        """Prepare every scorer that has a `prepare`."""
        for scorer in self.scorers.values():
            prepare = getattr(scorer, "prepare", None)
            if prepare is not None:
                prepare()

    def __call__(
        self, scored: RewardSample | Sequence[RewardSample]
    ) -> dict[str, float | str] | list[dict[str, float | str] | Exception | None] | None:
        """Score one sample with all scorers, or several where one of the scorers wants that."""
        if isinstance(scored, RewardSample):
            return self._sum({k: score_sample(s, scored) for k, s in self.scorers.items()})
        results = {name: score_group(scorer, scored) for name, scorer in self.scorers.items()}
        sums: list[dict[str, float | str] | Exception | None] = []
        for number in range(len(scored)):
            try:
                sums.append(self._sum({name: rows[number] for name, rows in results.items()}))
            except ValueError as error:  # of this sample alone
                sums.append(error)
        return sums

    def _sum(self, results: Mapping[str, RewardResult]) -> dict[str, float | str] | None:
        """Add up the results of one sample, by scorer; None if one of them abstains."""
        total, parts = 0.0, {}
        notes: dict[str, str] = {}
        for name, result in results.items():
            if result.outcome == ABSTAINED:
                return None
            if result.reward is None:
                raise ValueError(f"{name}: {result.outcome}")
            total += self.weights[name] * result.reward
            parts[name] = result.reward
            parts.update({f"{name}/{part}": value for part, value in result.parts.items()})
            notes.update({f"{name}/{key}": text for key, text in result.notes.items()})
        return {"reward": total, **parts, **notes}
