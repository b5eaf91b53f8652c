"""Run the critic's part of a step from the driver: values before credit, a fit to returns after.

The critic has its own division of a step into updates, ranks and micro-batches; the rows are the
policy's. A critic that shares the learner's placement and the learner train in turn; a critic with
a placement of its own trains beside the learner. In the first `critic.warmup_steps` steps the
critic learns and the policy does not. The computation is the critic ranks'
(`workers/learner/critic_worker.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from algorithms.algorithm import Algorithm
from conf.schema import TrainConfig
from orchestrator.cluster.critic_group import PendingAnswers, ValueFunction
from orchestrator.step.batch import StepBatch, plan_updates
from orchestrator.step.partition import SequenceCost
from workers.data.plans import RankPlan, StepRows


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Updates of the critic in one step, which have begun."""

    pending: PendingAnswers

    def result(self) -> dict[str, float]:
        """Wait for all ranks; return the metrics, which are the same on every rank."""
        metrics: dict[str, float] = self.pending.result()[0]
        return metrics


@dataclass(frozen=True, kw_only=True)
class CriticStep:
    """The critic's part of one step.

    Attributes:
        group: the critic's ranks.
        plans: one for each of these ranks.
        rows: the step's trajectories.
        alone: True if the policy does not train in this step.
        in_turn: True if the critic has the learner's placement, so that only one of the two trains
            at a time.
    """

    group: ValueFunction
    plans: tuple[RankPlan, ...]
    rows: StepRows
    alone: bool
    in_turn: bool

    def values(self) -> list[Any]:
        """Start to compute the values of the rows; return references to `values` columns."""
        return self.group.values(self.plans, self.rows)

    def fit(self, computed: Sequence[Any]) -> Fit:
        """Start the updates on the returns among the computed columns; wait if `in_turn`."""
        fit = Fit(pending=self.group.train(self.plans, self.rows, computed))
        if self.in_turn:
            fit.result()
        return fit


@dataclass(kw_only=True)
class Critic:
    """Critic of a run.

    Attributes:
        group: its ranks.
        algorithm: gives the loss of values and the weights of sequences.
        config: of the run.
        cost: of a sequence.
        share_prefixes: True if the critic computes the prompt of siblings once.
    """

    group: ValueFunction
    algorithm: Algorithm
    config: TrainConfig
    cost: SequenceCost
    share_prefixes: bool = False

    def step(
        self,
        step: int,
        batch: StepBatch,
        rows: StepRows,
        coefficients: Mapping[str, float],
    ) -> CriticStep:
        """Divide a step among the ranks, under the coefficients that hold for the step."""
        critic = self.config.critic
        plan = plan_updates(
            batch,
            self.algorithm.with_coefficients(coefficients),
            groups_per_update=self.config.trainer.prompts_per_step // critic.updates_per_step,
            num_passes=critic.epochs_per_step,
            seed=(self.config.seed, step),
            shuffled=self.config.schedule.order == "finished",
            num_ranks=critic.num_ranks,
            token_budget=critic.token_budget,
            cost=self.cost,
            share_prefixes=self.share_prefixes,
            coefficients=coefficients,
        )
        return CriticStep(
            group=self.group,
            plans=plan.ranks,
            rows=rows,
            alone=step <= critic.warmup_steps,
            in_turn=self.config.cluster.critic.shared,
        )
