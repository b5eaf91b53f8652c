"""The critic as the trainer sees it: values before credit, a fit to the returns after it.

It has its own division of a step into updates, ranks and micro-batches; the rows are the policy's.
Where it shares the learner's placement the two learn in turn; elsewhere it learns beside it.
In the first `critic.warmup_steps` steps it learns and the policy does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from algorithms.algorithm import Algorithm
from conf.schema import TrainConfig
from orchestrator.cluster.critic_group import Answers, ValueFunction
from orchestrator.step.batch import StepBatch, plan_updates
from orchestrator.step.partition import SequenceCost
from workers.data.plans import RankPlan, StepRows


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A step's updates of the critic, begun."""

    pending: Answers

    def result(self) -> dict[str, float]:
        """Metrics, which are global on every rank, once all ranks are done."""
        metrics: dict[str, float] = self.pending.result()[0]
        return metrics


@dataclass(frozen=True, kw_only=True)
class CriticStep:
    """What the critic does in one step.

    Attributes:
        group: its ranks.
        plans: who of them computes what.
        rows: the step's trajectories.
        alone: the policy does not train in this step.
        in_turn: it stands where the learner does, so that only one of them trains at a time.
    """

    group: ValueFunction
    plans: tuple[RankPlan, ...]
    rows: StepRows
    alone: bool
    in_turn: bool

    def values(self) -> list[Any]:
        """Start to say the values of the rows; references to `values` columns."""
        return self.group.values(self.plans, self.rows)

    def fit(self, computed: Sequence[Any]) -> Fit:
        """Start the updates on the returns among the computed columns; in turn, finish them."""
        fit = Fit(pending=self.group.train(self.plans, self.rows, computed))
        if self.in_turn:
            fit.result()
        return fit


@dataclass(kw_only=True)
class Critic:
    """The critic of a run."""

    group: ValueFunction
    algorithm: Algorithm
    config: TrainConfig
    cost: SequenceCost

    def step(self, step: int, batch: StepBatch, rows: StepRows) -> CriticStep:
        """Divide a step among the ranks."""
        critic = self.config.critic
        plan = plan_updates(
            batch,
            self.algorithm,
            num_updates=critic.updates_per_step,
            num_passes=critic.epochs_per_step,
            seed=(self.config.seed, step),
            num_ranks=critic.num_ranks,
            token_budget=critic.token_budget,
            cost=self.cost,
        )
        return CriticStep(
            group=self.group,
            plans=plan.ranks,
            rows=rows,
            alone=step <= critic.warmup_steps,
            in_turn=self.config.cluster.critic.shared,
        )
