"""The driver's side of a group of critic ranks: plans in, references to `values` columns out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from workers.calls import bind
from workers.data.plans import RankPlan, StepRows
from workers.learner.critic_worker import CriticWorker
from workers.worker_group import Pending, WorkerGroup


class Answers(Protocol):
    """Calls in flight."""

    def result(self) -> list[Any]:
        """What every rank answered, once all have."""


class ValueFunction(Protocol):
    """What the training loop asks of a critic."""

    def values(self, plans: Sequence[RankPlan], rows: StepRows) -> list[Any]:
        """Start to say the values of a step's rows; references to `values` columns."""

    def train(self, plans: Sequence[RankPlan], rows: StepRows, computed: Sequence[Any]) -> Answers:
        """Start the updates on the returns among the computed columns; every rank's metrics."""


class CriticGroup:
    """All ranks of one critic: a `ValueFunction`."""

    def __init__(self, workers: WorkerGroup[CriticWorker], *, train_s: float) -> None:
        self.workers = workers
        self._train_s = train_s

    def values(self, plans: Sequence[RankPlan], rows: StepRows) -> list[Any]:
        """Start a no-grad pass; one reference per rank to a record batch of `values`."""
        where = self.workers.put(rows)
        return [
            self.workers.send(rank, bind(CriticWorker.values, plan, where))
            for rank, plan in zip(self.workers.ranks, plans, strict=True)
        ]

    def train(
        self, plans: Sequence[RankPlan], rows: StepRows, computed: Sequence[Any]
    ) -> Pending[dict[str, float]]:
        """Start the optimizer updates; the result is every rank's metrics."""
        where = self.workers.put(rows)
        calls = [bind(CriticWorker.train, plan, where, *computed) for plan in plans]
        return self.workers.start_each(calls, timeout_s=self._train_s)
