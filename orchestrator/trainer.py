"""The training loop. Read this page first.

    who          produces                    consumes                     waits for
    producer     groups of trajectories      prompts of the ledger        rollout engines, rewards
    actor        old_logprobs, old_entropy   trajectories                 its ranks
    reference    ref_logprobs                trajectories                 its ranks
    critic       values, then a fit to       trajectories, then returns   its ranks
                 the returns
    learner      advantages, new weights     all of the above             its ranks
    publisher    an attested version         the learner's weights        learner and engines
    adaptation   coefficients, a reference   metrics, learner's weights   learner and reference

One loop serves every schedule: `schedule.max_staleness: 0` is synchronous training; with s > 0 the
engines sample up to s batches ahead while the learner trains. The driver handles metadata only;
trajectories go from the engines through the object store to the ranks.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from algorithms.algorithm import Algorithm
from conf.schema import TrainConfig
from orchestrator.accounting import Accounting
from orchestrator.adaptation import Adaptation
from orchestrator.batch import StepBatch, assemble, batch_metrics, plan_updates, usable_rows
from orchestrator.clock import Clock
from orchestrator.colocation import Turns
from orchestrator.critic import Critic, CriticStep
from orchestrator.evaluation import Evaluator, Scores
from orchestrator.groups import GroupSource, NothingLeftError, NothingToTrainError, Taken
from orchestrator.ledger import Ledger
from orchestrator.profiling import StepProfiler
from orchestrator.publication import Publishing
from orchestrator.saving import Saver
from orchestrator.skipped_steps import NonFiniteGradientsError, check_skipped
from orchestrator.stop import StoppedError, StopRequest
from workers.partition import SequenceCost
from workers.plans import CreditPlan, RankPlan, Trajectories
from workers.policy_group import Policy, training_metrics
from workers.recorder import Recorder
from workers.rollout_pool import EnginesLostError, RolloutGroup


@dataclass(kw_only=True)
class Trainer:
    """One training run, from its first step to its last."""

    config: TrainConfig
    algorithm: Algorithm
    learner: Policy
    reference: Policy | None
    producer: GroupSource
    ledger: Ledger
    publisher: Publishing
    profiler: StepProfiler
    adaptation: Adaptation
    evaluator: Evaluator | None
    saver: Saver
    recorder: Recorder | None
    turns: Turns
    cost: SequenceCost
    critic: Critic | None
    on_step: Callable[[int, dict[str, float]], None]
    on_scores: Callable[[int, Scores], None]
    version: int = 0
    stop: StopRequest = field(default_factory=StopRequest)
    make_clock: Callable[[], Clock] = Clock
    accounting: Accounting = field(default_factory=Accounting)

    def run(self, first_step: int) -> str:
        """Train from `first_step` to `trainer.total_steps`, both counted from 1.

        Returns:
            Why training ended before, or nothing.

        Raises:
            StoppedError: when it was asked to stop, and everything is on disk.
        """
        try:
            ended = self._run(first_step)
            self.saver.finish()
        except BaseException:
            self.saver.finish_quietly()
            raise
        if self.recorder is not None:
            self.recorder.flush()
        if ended and self.stop.requested:
            raise StoppedError(ended)
        return ended

    def _run(self, first_step: int) -> str:
        last = self.config.trainer.total_steps
        metrics: dict[str, float] = {}
        for step in range(first_step, last + 1):
            try:
                trained = self.step(step)
            except NothingLeftError as reason:
                if step == first_step:
                    raise
                self.save(step - 1, metrics | self.evaluate(step - 1))
                return f"ended after step {step - 1}: {reason}"
            except NonFiniteGradientsError:
                self.save(step, {})  # skipped steps changed nothing: these weights are good
                raise
            metrics = trained | self.saver.poll()
            self.on_step(step, metrics)
            if step == last or _due(step, self.config.trainer.eval_every):
                metrics |= self.evaluate(step)
            if step == first_step:
                self._check_best_metric(metrics)
            stopping = self.stop.requested and step < last
            if step == last or stopping or _due(step, self.config.trainer.checkpoint_every):
                self.save(step, metrics)
            if stopping:
                return f"stopped after step {step}, saved; resume=auto goes on from there"
        return ""

    def step(self, step: int) -> dict[str, float]:
        """Take groups, score, credit, train, publish, and let follow what follows the policy."""
        clock = self.make_clock()
        with clock.span("generate"):
            taken = self._take(step)
        self.producer.run_ahead(self.version)
        before = self.version
        batch = self._assemble(taken)
        rows = Trajectories(slices=batch.slices, batches=batch.batches)
        plan = plan_updates(
            batch,
            self.algorithm,
            num_updates=self.config.trainer.updates_per_step,
            num_passes=self.config.trainer.epochs_per_step,
            seed=(self.config.seed, step),
            num_ranks=self.config.learner.num_data_parallel,
            token_budget=self.config.learner.token_budget,
            cost=self.cost,
            coefficients=self.adaptation.coefficients,
        )
        critic = None if self.critic is None else self.critic.step(step, batch, rows)
        with clock.span("switch"):
            self.turns.learn()
        with clock.span("score"):
            scored = self._score(plan.ranks, rows)
            scored += [] if critic is None else critic.values()
            advantages, credit_metrics = self.learner.credit(
                CreditPlan(
                    rewards=batch.shaped_rewards,
                    group_ids=batch.group_ids,
                    trained=batch.trained,
                    coefficients=self.adaptation.coefficients,
                ),
                rows,
                scored,
            )
        with clock.span("train"), self.profiler.step(step):
            computed = [*scored, advantages]
            logprobs, trained = self._train(plan.ranks, rows, computed, critic)
        with clock.span("publish"):
            published = self._publish(trained)
        with clock.span("follow"):
            followed = self.adaptation.follow({**credit_metrics, **trained}, len(batch.metas))
        if self.recorder is not None:
            self.recorder.write(step, batch.slices, batch.batches, [*computed, *logprobs])
        metrics = {
            **batch_metrics(batch, before),
            **plan.metrics,
            **credit_metrics,
            **trained,
            **published,
            **self.turns.metrics(),
            **followed,
            **taken.metrics(),
            **self.producer.metrics(),
            **self.ledger.metrics(),
        }
        metrics |= self.accounting.step(step, clock, metrics)
        metrics |= clock.metrics()
        waited_s = metrics["time/generate_s"] or metrics["time/step_s"]
        metrics["rollout/tokens_per_s"] = metrics["rollout/tokens"] / waited_s
        return metrics

    def _take(self, step: int) -> Taken:
        try:
            return self.producer.take(step, self.version, self._why_not)
        except EnginesLostError:
            self.ledger.untrain(step)
            if step > 1:
                self.save(step - 1, {})  # the step has changed no weight
            raise

    def _why_not(self, group: RolloutGroup) -> str | None:
        """Why the algorithm's filters reject a group, or None."""
        rows = usable_rows(group)
        rewards = torch.tensor([group.metas[row].reward for row in rows], dtype=torch.float32)
        keep = self.algorithm.keep_groups(rewards, torch.zeros(len(rows), dtype=torch.int64))
        return None if bool(keep[0]) else "filtered"

    def _assemble(self, taken: Taken) -> StepBatch:
        batch = assemble(taken.groups, self.algorithm) if taken.groups else None
        if batch is None or not np.any(batch.lengths):
            only_filters = set(taken.dropped) == {"filtered"} and not taken.failed
            error = NothingLeftError if only_filters else NothingToTrainError
            raise error(
                f"no group may train: groups dropped {dict(taken.dropped)}, samples failed "
                f"{dict(taken.failed)}. Check the reward and the prompts, or the algorithm's "
                "filters"
            )
        return batch

    def _score(self, plans: tuple[RankPlan, ...], rows: Trajectories) -> list[Any]:
        """Start what the algorithm needs of pi_old and of the reference.

        With one update per step pi_old is the policy that the learner itself evaluates, so unless
        credit reads the column before, its own forward supplies it.
        """
        wanted, early = self.algorithm.required_columns, self.algorithm.credit_columns
        several = self.config.trainer.num_updates > 1
        references: list[Any] = []
        if self.reference is not None:
            references += self.reference.score(plans, rows, logprobs="ref_logprobs", entropy=None)
        if (several and wanted & {"old_logprobs", "old_entropy"}) or "old_logprobs" in early:
            actor = self.learner
            entropy = "old_entropy" if "old_entropy" in wanted else None
            references += actor.score(plans, rows, logprobs="old_logprobs", entropy=entropy)
        return references

    def _train(
        self,
        plans: tuple[RankPlan, ...],
        rows: Trajectories,
        computed: list[Any],
        critic: CriticStep | None,
    ) -> tuple[list[Any], dict[str, float]]:
        """The step's updates: `logprobs` columns and metrics; none while the critic warms up."""
        fit = None if critic is None else critic.fit(computed)
        logprobs: list[Any] = []
        trained: dict[str, float] = {}
        if critic is None or not critic.alone:
            logprobs, reports = self.learner.train(plans, rows, computed)
            trained = training_metrics(reports)
            check_skipped(reports, limit=self.config.learner.max_skipped_steps)
        return logprobs, trained if fit is None else {**trained, **fit.result()}

    def _publish(self, trained: dict[str, float]) -> dict[str, float]:
        """The next version of the policy, if it trained."""
        if "learner/steps" not in trained:
            return {}
        self.version += 1
        stepped = trained["learner/steps"] > 0 and trained["learner/grad_norm"] > 0
        return self.publisher.publish(self.version, stepped=stepped)

    def evaluate(self, step: int) -> dict[str, float]:
        """Score the held-out prompts with the engines' present weights: `eval/...`."""
        if self.evaluator is None:
            return {}
        try:
            scores = self.evaluator.run(self.version)
        except EnginesLostError:
            if step > 0:
                self.save(step, {})
            raise
        self.on_scores(step, scores)
        return {f"eval/{name}": value for name, value in scores.metrics.items()}

    def save(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a checkpoint of the state after `step`, written while the next steps run."""
        score = metrics.get(self.config.trainer.best_metric)
        self.saver.begin(step, version=self.version, score=score)

    def _check_best_metric(self, measured: Mapping[str, float]) -> None:
        """Refuse a name that no checkpoint would ever be judged by."""
        trainer = self.config.trainer
        scored = trainer.best_metric.startswith("eval/") and self.evaluator is not None
        if trainer.keep_best and not scored and trainer.best_metric not in measured:
            near = difflib.get_close_matches(trainer.best_metric, measured, n=1, cutoff=0.0)
            raise ValueError(
                f"trainer.best_metric={trainer.best_metric!r} is not measured by this run; did you "
                f"mean {near[0]}? trainer.keep_best=0 keeps the newest checkpoints only"
            )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
