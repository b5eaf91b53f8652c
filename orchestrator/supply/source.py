"""Define the interface from which the trainer takes the groups of a step, and the ends of a supply.

In the driver, `producer.py` supplies groups that engines sample for this run, `replay.py` those
that another run recorded; the trainer knows neither. Groups flow out, nothing flows back but the
version of the weights and the algorithm's verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from orchestrator.step.samples import whole_samples
from workers.data.trajectory import SCORED, STOPPED_EARLY, RolloutGroup


def group_name(epoch: int, row: int, attempt: int) -> str:
    """Return the id of a prompt's group; every attempt to sample the prompt has its own."""
    return f"{epoch}-{row}-{attempt}" if attempt else f"{epoch}-{row}"


def prompt_of(group_id: str) -> tuple[int, int]:
    """Return (epoch, row) of the prompt for which `group_name` made the id."""
    epoch, row = group_id.split("-")[:2]
    return int(epoch), int(row)


class NothingToTrainError(RuntimeError):
    """A step in which no group may train; the message counts the reasons."""


class NothingLeftError(NothingToTrainError):
    """A supply without further groups: the run ends as it ends after its last step."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Groups of one step, and counts of those that were dropped on the way.

    Example, one group trains and one was filtered:
        Taken(
            groups=(group,),
            dropped=Counter({"filtered": 1}),
            failed=Counter({"failed:timeout": 1}),
            rewards=(1.0, 0.0, 1.0),
        )
    """

    groups: tuple[RolloutGroup, ...]
    dropped: Counter[str] = field(default_factory=Counter)  # groups, by reason
    failed: Counter[str] = field(default_factory=Counter)  # samples, by outcome
    num_late: int = 0  # groups that train though they are staler than the bound
    num_abstained: int = 0  # samples for which the scorer gave None
    num_aborted: int = 0  # groups that over-sampling began and that were not waited for
    rewards: tuple[float, ...] = ()  # of every scored sample, also of groups that do not train
    failed_rows: tuple[tuple[Any, int], ...] = ()  # record batch, row: of `failed`, in any group

    def metrics(self) -> dict[str, float]:
        """Return counts of groups taken and dropped, and the shares of an early stop."""
        return {
            "groups/trained": float(len(self.groups)),
            "groups/dropped": float(self.dropped.total()),
            "groups/filtered": float(self.dropped["filtered"]),
            "groups/aborted": float(self.num_aborted),
            "staleness/groups_late": float(self.num_late),
            "reward/sampled_mean": sum(self.rewards) / max(1, len(self.rewards)),
            "samples/failed": float(self.failed.total()),
            "samples/abstained": float(self.num_abstained),
            **self._early_stop_metrics(),
        }

    def _early_stop_metrics(self) -> dict[str, float]:
        metas = [meta for group in self.groups for meta in whole_samples(group.metas)]
        stopped = [meta.num_sampled for meta in metas if meta.outcome == STOPPED_EARLY]
        if not stopped:
            return {}
        finished = [meta.num_sampled for meta in metas if meta.outcome == SCORED]
        return {
            "rollout/early_stop_frac": len(stopped) / len(metas),
            "rollout/early_stop_length_bias": float(np.mean(finished) - np.mean(stopped)),
        }


class GroupSource(Protocol):
    """Source of the groups of every step."""

    def take(
        self, step: int, version: int, may_train: Callable[[RolloutGroup], str | None]
    ) -> Taken:
        """Return the groups of a step.

        Args:
            step: recorded in the ledger as the step that trained the groups.
            version: of the learner's weights.
            may_train: returns the reason against training a group with usable rows, or None.

        Raises:
            NothingLeftError: there are no more groups.
        """

    def give_back(self) -> None:
        """Undo the last `take` in the ledger, because none of its groups was trained."""

    def run_ahead(self, version: int) -> None:
        """Prepare the groups of later steps while this one trains; return at once."""

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the supply."""
