"""The driver's side of a group of policy ranks: plans in, references to Arrow columns out.

A step's trajectories and computed columns stay in the object store; this class only passes
references on. The same group serves as learner and, having the same weights when a step begins, as
actor; another one without an optimizer serves as reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.group import Pending, WorkerGroup
from workers.plans import CreditPlan, RankPlan, Slice
from workers.policy_worker import TrainReport


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectories:
    """Where a step's rows lie: `slices` of the record batches behind `batches`."""

    slices: Sequence[Slice]
    batches: Sequence[Any]


class PolicyGroup:
    """All ranks of one policy."""

    def __init__(self, workers: WorkerGroup, *, train_s: float) -> None:
        self.workers = workers
        self._train_s = train_s

    def score(
        self, plans: Sequence[RankPlan], rows: Trajectories, *, logprobs: str, entropy: str | None
    ) -> list[Any]:
        """Start a no-grad pass; one reference per rank to a record batch of the named columns."""
        return [
            handle.score.remote(plan, rows.slices, logprobs, entropy, *rows.batches)
            for handle, plan in zip(self.workers.handles, plans, strict=True)
        ]

    def credit(
        self, plan: CreditPlan, rows: Trajectories, computed: Sequence[Any]
    ) -> tuple[Any, Mapping[str, float]]:
        """Advantages of the whole step, on rank 0: their reference, and metrics."""
        call = self.workers.handles[0].credit.options(num_returns=2)
        columns, metrics = call.remote(plan, rows.slices, len(computed), *computed, *rows.batches)
        answer = Pending(self.workers.role, "credit", [metrics], self._train_s).result()[0]
        return columns, answer

    def train(
        self, plans: Sequence[RankPlan], rows: Trajectories, computed: Sequence[Any]
    ) -> tuple[list[Any], list[TrainReport]]:
        """Run the optimizer updates: references to `logprobs` columns, and every rank's report."""
        columns, reports = [], []
        for handle, plan in zip(self.workers.handles, plans, strict=True):
            call = handle.train.options(num_returns=2)
            column, report = call.remote(plan, rows.slices, len(computed), *computed, *rows.batches)
            columns.append(column)
            reports.append(report)
        return columns, Pending(self.workers.role, "train", reports, self._train_s).result()


def training_metrics(reports: Sequence[TrainReport]) -> dict[str, float]:
    """What the ranks report, as one: their metrics are global already, their gaps are not."""
    tokens = max(1, sum(report.gap_tokens for report in reports))
    return {
        **reports[0].metrics,
        "learner/steps": float(reports[0].steps_taken),
        "mismatch/abs_mean": sum(report.gap_sum for report in reports) / tokens,
        "mismatch/abs_max": max(report.gap_max for report in reports),
    }
