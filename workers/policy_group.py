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
    ) -> tuple[list[Any], Pending]:
        """Start the optimizer updates: references to `logprobs` columns, and the metrics to come."""
        columns, metrics = [], []
        for handle, plan in zip(self.workers.handles, plans, strict=True):
            call = handle.train.options(num_returns=2)
            column, metric = call.remote(plan, rows.slices, len(computed), *computed, *rows.batches)
            columns.append(column)
            metrics.append(metric)
        return columns, Pending(self.workers.role, "train", metrics, self._train_s)
