"""Compute one training step. Read this file first.

    part         produces                    consumes                     waits for
    supply       groups of trajectories      prompts of the ledger        rollout engines, rewards
    colocation   room on shared GPUs         -                            engines and learner
    reference    ref_logprobs                trajectories                 its ranks
    actor        old_logprobs, old_entropy   trajectories                 the learner's ranks
    critic       values, then a fit to       trajectories, then returns   its ranks
                 the returns
    learner      advantages, new weights     all of the above             its ranks
    publisher    an attested version         the learner's weights        learner and engines
    adaptation   coefficients, a reference   metrics, learner's weights   learner and reference

The actor is the learner at the start of a step, which has the weights of pi_old.

One step serves every schedule: `schedule.max_staleness: 0` is synchronous training; with s > 0 the
engines sample up to s batches ahead while the learner trains. Runs in the driver, which handles
metadata only; trajectories go from the engines through the object store to the ranks. Steps are
repeated, saved and evaluated in `loop.py`; a run is composed in `run.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from algorithms.algorithm import Algorithm
from conf.schema import TrainConfig
from orchestrator.cluster.policy_group import training_metrics
from orchestrator.outputs import Outputs
from orchestrator.step.adaptation import Adaptation
from orchestrator.step.batch import StepBatch, assemble, batch_metrics, plan_updates
from orchestrator.step.critic import CriticStep
from orchestrator.step.roles import TrainingRoles
from orchestrator.step.skipped_steps import check_skipped
from orchestrator.supply.source import (
    NothingLeftError,
    NothingToTrainError,
    Taken,
)
from orchestrator.supply.supply import Supply
from orchestrator.telemetry.counting import describe_reasons
from workers.data.plans import CreditPlan, RankPlan, StepRows
from workers.data.trajectory import RolloutGroup
from workers.learner.policy_worker import TrainReport


@dataclass(kw_only=True)
class Trainer:
    """Step of a training run.

    Attributes:
        config: the checked configuration.
        algorithm: decides which columns of a batch are computed.
        roles: compute these columns.
        supply: gives groups and takes weights.
        outputs: record and account for the step.
        adaptation: holds the coefficients and moves the reference.
        version: label of the weights that the engines have.
        trained: the last step whose updates the weights hold; None while they change.
        measured: metrics of that step, as far as they were known before its publication.
    """

    config: TrainConfig
    algorithm: Algorithm
    roles: TrainingRoles
    supply: Supply
    outputs: Outputs
    adaptation: Adaptation
    version: int = 0
    trained: int | None = 0
    measured: dict[str, float] = field(default_factory=dict)

    def step(self, step: int) -> dict[str, float]:
        """Take groups, score, credit, train, publish, and adapt; return the metrics of the step."""
        clock = self.outputs.make_clock()
        algorithm = self.algorithm.with_coefficients(self.adaptation.coefficients)
        with clock.span("generate"):
            drop = partial(_reason_to_drop, algorithm)
            taken = self.supply.groups.take(step, self.version, drop)
        if self.outputs.recorder is not None:
            self.outputs.recorder.write_failed(step, taken.failed_rows)
        if not taken.groups:  # the run ends here, and what failed says why
            self.outputs.flush()
        self.supply.groups.run_ahead(self.version)
        sampled_for = self.version  # the version before this step publishes another
        batch = _assemble(taken, algorithm)
        rows = StepRows(slices=batch.slices, batches=batch.batches)
        plan = plan_updates(
            batch,
            algorithm,
            groups_per_update=self.config.trainer.groups_per_update,
            num_passes=self.config.trainer.epochs_per_step,
            seed=(self.config.seed, step),
            shuffled=self.config.schedule.order == "finished",
            num_ranks=self.config.learner.num_data_parallel,
            token_budget=self.config.learner.token_budget,
            cost=self.roles.cost,
            share_prefixes=self.roles.share_prefixes,
            coefficients=self.adaptation.coefficients,
            version=sampled_for,
        )
        critic = None
        if self.roles.critic is not None:
            critic = self.roles.critic.step(step, batch, rows, self.adaptation.coefficients)
        with clock.span("switch"):
            self.supply.colocation.learn()
        with clock.span("score"):
            read = self._start_logprobs(plan.ranks, rows)
            read += [] if critic is None else critic.values()
            advantages, credit_metrics = self.roles.learner.credit(
                CreditPlan(
                    shaped_rewards=batch.shaped_rewards,
                    group_ids=batch.group_ids,
                    trained=batch.trained,
                    coefficients=self.adaptation.coefficients,
                    rollout_ids=batch.rollout_ids,
                ),
                rows,
                read,
            )
        with clock.span("train"), self._profile(step):
            computed = [*read, advantages]
            logprobs, reports, fitted = self._train(step, plan.ranks, rows, computed, critic)
        trained = (training_metrics(reports) if reports else {}) | fitted
        metrics = {
            **batch_metrics(batch, sampled_for),
            **plan.metrics,
            **credit_metrics,
            **trained,
            **taken.metrics(),
        }
        # From here on the weights hold the step, and a checkpoint may: it is on record and can be
        # logged, whatever follows.
        self.measured = metrics | clock.metrics()
        try:
            if self.outputs.recorder is not None:
                columns = [*computed, *logprobs]
                self.outputs.recorder.write(step, batch.slices, batch.batches, columns)
            check_skipped(reports, limit=self.config.learner.max_skipped_steps)
            with clock.span("publish"):
                published = self._publish(trained)
        finally:  # published or not, the weights have moved, and with them what follows them
            with clock.span("follow"):
                self.trained = None
                followed = self.adaptation.follow({**credit_metrics, **trained}, len(batch.metas))
                self.trained = step
        metrics |= published | followed
        metrics |= self.supply.colocation.metrics() | self.supply.groups.metrics()
        metrics |= self.supply.ledger.metrics()
        metrics |= self.outputs.accounting.step(step, clock, metrics)
        metrics |= clock.metrics()
        # A step whose groups were ready did not wait for the engines: they sampled all the while.
        waited_s = metrics["time/generate_s"] or metrics["time/step_s"]
        metrics["rollout/tokens_per_s"] = metrics["rollout/tokens"] / waited_s
        return metrics

    def _profile(self, step: int) -> AbstractContextManager[None]:
        profiler = self.outputs.profiler
        return nullcontext() if profiler is None else profiler.step(step)

    def _start_logprobs(self, plans: tuple[RankPlan, ...], rows: StepRows) -> list[Any]:
        """Start the columns of pi_old and of the reference that the algorithm needs.

        With one update per step pi_old is the policy that the learner itself evaluates, so the
        learner's own forward supplies the column, unless credit reads it before.

        Returns:
            References to the columns.
        """
        wanted, early = self.algorithm.required_columns, self.algorithm.credit_columns
        several = self.config.trainer.num_updates > 1
        columns: list[Any] = []  # references to record batches
        if self.roles.reference is not None:
            columns += self.roles.reference.compute_logprobs(
                plans, rows, logprobs="ref_logprobs", entropy=None
            )
        if (several and wanted & {"old_logprobs", "old_entropy"}) or "old_logprobs" in early:
            actor = self.roles.learner
            entropy = "old_entropy" if "old_entropy" in wanted else None
            columns += actor.compute_logprobs(plans, rows, logprobs="old_logprobs", entropy=entropy)
        return columns

    def _train(
        self,
        step: int,
        plans: tuple[RankPlan, ...],
        rows: StepRows,
        computed: list[Any],
        critic: CriticStep | None,
    ) -> tuple[list[Any], list[TrainReport], dict[str, float]]:
        """Run the step's updates; return the `logprobs` columns, reports and the critic's metrics.

        While the critic warms up the policy has no update, no columns and no reports.
        """
        self.trained = None
        fit = None if critic is None else critic.fit(computed)
        logprobs: list[Any] = []
        reports: list[TrainReport] = []
        if critic is None or not critic.alone:
            logprobs, reports = self.roles.learner.train(plans, rows, computed)
        fitted = {} if fit is None else fit.result()
        self.trained = step
        return logprobs, reports, fitted

    def _publish(self, trained: dict[str, float]) -> dict[str, float]:
        """Publish the next version of the policy, if the policy trained; return the metrics."""
        if "learner/steps" not in trained:
            return {}
        self.version += 1
        stepped = trained["learner/steps"] > 0 and trained["learner/grad_norm"] > 0
        return self.supply.publisher.publish(self.version, stepped=stepped)


def _reason_to_drop(algorithm: Algorithm, group: RolloutGroup) -> str | None:
    """Return "filtered" where the algorithm's filters reject a group, else None."""
    usable = (group.metas[row] for row in group.usable_rows())
    metas = list({meta.rollout_id: meta for meta in usable}.values())  # each rollout once
    rewards = torch.tensor([meta.reward for meta in metas], dtype=torch.float32)
    parts = [meta.reward_parts for meta in metas]
    keep = algorithm.keep_groups(rewards, torch.zeros(len(metas), dtype=torch.int64), parts)
    return None if bool(keep[0]) else "filtered"


def _assemble(taken: Taken, algorithm: Algorithm) -> StepBatch:
    """Assemble the batch of a step, or raise an error where no group may train."""
    batch = assemble(taken.groups, algorithm) if taken.groups else None
    if batch is None or not np.any(batch.lengths):
        only_filters = set(taken.dropped) == {"filtered"} and not taken.failed
        error = NothingLeftError if only_filters else NothingToTrainError
        raise error(
            f"no group may train: groups dropped: {describe_reasons(taken.dropped)}; samples "
            f"failed: {describe_reasons(taken.failed)}. Check the reward and the prompts, or "
            "the algorithm's filters"
        )
    return batch
