"""Call a group of critic ranks: plans in, references to `values` columns out.

Runs in the driver, which holds no column: values stay in the object store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from workers.calls import bind
from workers.data.plans import RankPlan, StepRows
from workers.learner.critic_worker import CriticWorker
from workers.worker_group import Pending, WorkerGroup


class PendingAnswers(Protocol):
    """Answers of calls in flight."""

    def result(self) -> list[Any]:
        """Wait for the answers of all ranks, and return them."""


class ValueFunction(Protocol):
    """Critic as the training loop calls it."""

    def values(self, plans: Sequence[RankPlan], rows: StepRows) -> list[Any]:
        """Start a no-grad pass over a step's rows; return references to `values` columns."""

    def train(
        self, plans: Sequence[RankPlan], rows: StepRows, computed: Sequence[Any]
    ) -> PendingAnswers:
        """Start the updates on the returns among the computed columns.

        Returns:
            The metrics of every rank, in flight.
        """


class CriticGroup:
    """Group of all ranks of one critic: a `ValueFunction`."""

    def __init__(self, workers: WorkerGroup[CriticWorker], *, train_s: float) -> None:
        self.workers = workers
        self._train_s = train_s

    def values(self, plans: Sequence[RankPlan], rows: StepRows) -> list[Any]:
        """Start a no-grad pass; return one reference per rank to a record batch of `values`."""
        where = self.workers.put(rows)
        return [
            self.workers.send(rank, bind(CriticWorker.values, plan, where))
            for rank, plan in zip(self.workers.ranks, plans, strict=True)
        ]

    def train(
        self, plans: Sequence[RankPlan], rows: StepRows, computed: Sequence[Any]
    ) -> Pending[dict[str, float]]:
        """Start the optimizer updates; return every rank's metrics, in flight."""
        where = self.workers.put(rows)
        calls = [bind(CriticWorker.train, plan, where, *computed) for plan in plans]
        return self.workers.start_each(calls, timeout_s=self._train_s)
