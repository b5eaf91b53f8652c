"""What the training loop asks of whoever supplies its groups, and how a supply ends.

`producer.py` supplies groups that engines sample for this run, `replay.py` those that another run
recorded; the trainer knows neither. Groups flow out, nothing flows back but the version of the
weights and the algorithm's verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from workers.rollout_pool import RolloutGroup


class NothingToTrainError(RuntimeError):
    """A step in which no group may train; the message counts why."""


class NothingLeftError(NothingToTrainError):
    """Whatever can be learned here has been, or can't be: the run ends as it ends after a step."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Groups of one step, and what was dropped on the way."""

    groups: tuple[RolloutGroup, ...]
    dropped: Counter[str] = field(default_factory=Counter)  # groups, by reason
    failed: Counter[str] = field(default_factory=Counter)  # samples, by outcome
    num_late: int = 0  # groups that train though they are staler than the bound
    rewards: tuple[float, ...] = ()  # of every scored sample, also of groups that do not train

    def metrics(self) -> dict[str, float]:
        """How many groups and samples had which fate, and the mean reward of all."""
        return {
            "groups/trained": float(len(self.groups)),
            "groups/dropped": float(self.dropped.total()),
            "groups/filtered": float(self.dropped["filtered"]),
            "staleness/groups_late": float(self.num_late),
            "reward/sampled_mean": sum(self.rewards) / max(1, len(self.rewards)),
            "samples/failed": float(self.failed.total()),
        }


class GroupSource(Protocol):
    """Where a step's groups come from."""

    def take(
        self, step: int, version: int, may_train: Callable[[RolloutGroup], str | None]
    ) -> Taken:
        """The groups of a step.

        Args:
            step: recorded in the ledger as where they were trained.
            version: of the learner's weights.
            may_train: why a group with usable rows may not train, or None.

        Raises:
            NothingLeftError: there are no more groups.
        """

    def run_ahead(self, version: int) -> None:
        """Prepare the groups of later steps while this one trains; returns at once."""

    def metrics(self) -> dict[str, float]:
        """How the supply fares."""
