"""Combine several scorers: the weighted sum of their rewards, each kept as a part.

Runs in a scoring process, one scorer after another. A failed scorer is not replaced by a zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from workers.reward.base import ABSTAINED, RewardSample, Scorer, score_sample, takes_group


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
            if takes_group(scorer):
                raise ValueError(
                    f"scorer {name!r} scores whole groups, which a weighted sum can't: combine the "
                    "scores in that function"
                )

    def prepare(self) -> None:
        """Prepare every scorer that has a `prepare`."""
        for scorer in self.scorers.values():
            prepare = getattr(scorer, "prepare", None)
            if prepare is not None:
                prepare()

    def __call__(self, sample: RewardSample) -> dict[str, float | str] | None:
        """Score one sample with all scorers."""
        total, parts = 0.0, {}
        notes: dict[str, str] = {}
        for name, scorer in self.scorers.items():
            result = score_sample(scorer, sample)
            if result.outcome == ABSTAINED:
                return None
            if result.reward is None:
                raise ValueError(f"{name}: {result.outcome}")
            total += self.weights[name] * result.reward
            parts[name] = result.reward
            parts.update({f"{name}/{part}": value for part, value in result.parts.items()})
            notes.update({f"{name}/{key}": text for key, text in result.notes.items()})
        return {"reward": total, **parts, **notes}
