"""Choose the scorer by a column of the row, such as the name of its source.

Runs in a scoring process. Scores nothing itself; rewards of different scorers are not put on one
scale, which the advantage does inside each group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from workers.reward.base import (
    RewardSample,
    Scorer,
    call_scorer,
    hand_folder,
    joint_check,
    reads_images,
    takes_group,
)
from workers.reward.scorers.models.judge_model import JudgeEngines, on_engines


@dataclass(frozen=True, kw_only=True, slots=True)
class ByColumn:
    """Scorer that hands each sample to the scorer that its row names.

    Attributes:
        scorers: by the values of the column.
        column: of the row; `dataset` holds the name of the row's source.
        other: scores rows with another value; None fails them.

    Raises:
        ValueError: no scorer, or some score whole groups and others single samples.
    """

    reads_lists: ClassVar[bool] = True  # the chosen scorer is asked whether it does

    scorers: Mapping[str, Scorer]
    column: str = "dataset"
    other: Scorer | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scorers", dict(self.scorers))
        if not self.scorers:
            raise ValueError("reward.scorer.scorers must name at least one scorer, got none")
        for name, scorer in self.scorers.items():
            if not callable(scorer):
                raise ValueError(f"scorer {name!r} must be callable, got {scorer!r}")
        if len({takes_group(scorer) for scorer in self._all()}) > 1:
            raise ValueError(
                f"scorers {sorted(self.scorers)} score whole groups in part; let all of them do so "
                "or none"
            )

    @property
    def whole_group(self) -> bool:
        """True where the scorers want all siblings of a prompt in one call."""
        return any(map(takes_group, self._all()))

    @property
    def stop_at(self) -> str | None:
        """The text at which the scorer of other rows stops reading."""
        return getattr(self.other, "stop_at", None)

    @property
    def reads_images(self) -> bool:
        """True where one of the scorers reads the images of prompts."""
        return any(map(reads_images, self._all()))

    @property
    def check(self) -> Callable[[], None] | None:
        """The checks of the scorers that are too heavy to be tried; None where there is none."""
        return joint_check(self._all())

    def on_engines(self, engines: JudgeEngines) -> ByColumn:
        """Return the scorers with the run's own engines filled into the judges among them."""
        filled = {name: on_engines(scorer, engines) for name, scorer in self.scorers.items()}
        return replace(self, scorers=filled, other=on_engines(self.other, engines))

    def keep_in(self, folder: str) -> None:
        """Hand the run's folder to the scorers that write files."""
        hand_folder(self._all(), folder)

    def prepare(self) -> None:
        """Prepare every scorer that has a `prepare`."""
        for scorer in self._all():
            prepare = getattr(scorer, "prepare", None)
            if prepare is not None:
                prepare()

    def __call__(self, given: RewardSample | Sequence[RewardSample]) -> Any:
        """Score a sample, or the siblings of one prompt, whose rows are one row.

        Raises:
            ValueError: no scorer for the row.
        """
        if isinstance(given, RewardSample):
            return call_scorer(self._scorer_of(given), given)
        together: Any = self._scorer_of(given[0])
        return together(given)

    def extract(self, sample: RewardSample) -> str | None:
        """Return the answer of a response, if the row's scorer finds one."""
        extract = getattr(self._scorer_of(sample), "extract", None)
        return None if extract is None else extract(sample)

    def _scorer_of(self, sample: RewardSample) -> Scorer:
        value = sample.columns.get(self.column)
        scorer = self.scorers.get(str(value), self.other)
        if scorer is None:
            raise ValueError(
                f"no scorer for {self.column}={value!r}; reward.scorer.scorers has "
                f"{', '.join(sorted(self.scorers))}"
            )
        return scorer

    def _all(self) -> list[Scorer]:
        return [*self.scorers.values(), *([] if self.other is None else [self.other])]
