"""Run steps until the run ends: evaluate, save and stop between them.

One loop serves every run. It calls `step` of a `Trainer` (train, replay) or of a `Collector`
(rollout_only) and imports neither. Runs in the driver. The order inside a step is in `trainer.py`;
read that first.

    after a step        when
    log its metrics     always
    evaluate            every `trainer.eval_every` steps, and after the last; where engines run
                        ahead, beside the steps that follow
    save                every `trainer.checkpoint_every` steps, after the last, and before stopping;
                        after every step where nothing learns, because it costs a small file;
                        before any failure is raised, if the weights are whole
    stop                when a signal came, the supply is at its end, or there was nothing to learn
                        from for `trainer.stop_if_stuck_steps` steps; a step that still samples
                        when the signal comes is given back instead of finished
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from conf.schema import TrainConfig
from orchestrator.checkpoints.checkpoint import Checkpoint
from orchestrator.checkpoints.saving import CheckpointError, Saver
from orchestrator.outputs import Outputs
from orchestrator.step.learning_watch import LearningWatch
from orchestrator.stop import StopRequest
from orchestrator.supply.source import NothingLeftError
from orchestrator.supply.supply import Supply


class Stepper(Protocol):
    """Step of one kind of run, as the loop calls it.

    Attributes:
        version: label of the weights that the next step samples from.
        trained: the last step that the weights hold, all of it; None while they change.
        measured: metrics of that step as far as they were known when the weights held it.
    """

    version: int
    trained: int | None
    measured: dict[str, float]

    def step(self, step: int) -> dict[str, float]:
        """Do one step and return its metrics.

        Raises:
            NothingLeftError: the supply is at its end; nothing was changed.
            Exception: anything that ends the run; `trained` says what the weights hold.
        """


@dataclass(kw_only=True)
class Loop:
    """Loop over the steps of one run, from the first to the last."""

    config: TrainConfig
    stepper: Stepper
    supply: Supply
    saver: Saver
    outputs: Outputs
    stop: StopRequest = field(default_factory=StopRequest)
    watch: LearningWatch = field(init=False)
    _begun: int = 0  # the last step that was begun
    _logged: int = 0  # the last step whose metrics were logged
    _saved: int = 0  # the last step of which a checkpoint was taken
    _evaluating: int | None = None  # the step of an evaluation that goes on beside training

    def __post_init__(self) -> None:
        self.watch = LearningWatch(self.config)

    def begin(self, checkpoint: Checkpoint | None) -> int:
        """Bring engines and learner to the state before the first step; return that step's number.

        Without a checkpoint the first step is 1, and the held-out prompts are scored before it.
        """
        if checkpoint is not None:
            self.saver.restore(checkpoint)
            self.stepper.version, self.stepper.trained = checkpoint.version, checkpoint.step
            self._begun = self._logged = self._saved = checkpoint.step
        self.supply.publisher.begin(self.stepper.version)
        if checkpoint is not None:
            return checkpoint.step + 1
        self.evaluate(0)
        return 1

    def run(self, first_step: int) -> str:
        """Run from `first_step` to `trainer.total_steps`, both counted from 1.

        Returns:
            The reason why the run ended before its last step; empty if it reached that step.

        Raises:
            StoppedError: when it was asked to stop, and everything is on disk.
            Exception: what ended the run; its notes say what was saved before.
        """
        try:
            ended = self._run(first_step)
            self.saver.finish()
        except Exception as error:
            self._save_before(error)
            raise
        except BaseException:
            self.saver.finish_quietly()
            raise
        self.outputs.flush()
        if ended and self.stop.requested:
            raise self.stop.stopped(ended)
        return ended

    def _run(self, first_step: int) -> str:
        trainer, last = self.config.trainer, self.config.trainer.total_steps
        for step in range(first_step, last + 1):
            self._begun = step
            self.stop.activity.begin(f"step {step} of {last}")
            try:
                stepped = self.stepper.step(step)
            except NothingLeftError as reason:
                if step == first_step:
                    raise
                self.save(step - 1, self.evaluate(step - 1))
                return f"ended after step {step - 1}: {reason}"
            metrics = stepped | self.saver.poll()
            self._logged = step
            self.outputs.log.step(step, metrics)
            ending = self.watch.ending(metrics)
            self._take_evaluation(wait=False)
            if step == last or ending:
                metrics |= self.evaluate(step)
            elif _is_due(step, trainer.eval_every):
                metrics |= self._evaluate_between(step)
            if step == first_step:
                self._check_best_metric(metrics)
            stopping = self.stop.requested and step < last
            every = trainer.checkpoint_every if trainer.learns else 1
            if step == last or stopping or ending or _is_due(step, every):
                self.save(step, metrics)
            if ending and step < last:
                return f"ended after step {step}: {ending}"
            if stopping:
                return f"stopped; step {step} is saved; resume=auto goes on from there"
        return ""

    def _save_before(self, error: Exception) -> None:
        """Save the last whole state before a failure is raised, and note on it what is saved.

        The failure is what the user shall read, so nothing that fails here hides it. A step that
        was begun and not trained is given back to the ledger; one that was trained, and ended
        before it was logged, is logged.
        """
        whole = self.stepper.trained
        try:
            if whole is not None and not isinstance(error, CheckpointError):
                if self._begun > whole:
                    self.supply.groups.give_back()
                if whole > self._saved:
                    self.save(whole, {})
                if whole > self._logged:
                    self.outputs.log.step(whole, self.stepper.measured)
            self.saver.finish()
        except Exception as fault:
            error.add_note(f"no checkpoint could be taken at the end ({fault})")
        else:
            if self._saved and not isinstance(error, CheckpointError):
                error.add_note(f"step {self._saved} is saved; resume=auto goes on from there")

    def evaluate(self, step: int) -> dict[str, float]:
        """Score the held-out prompts under the engines' present weights; return `eval/...`.

        Returns no metric where no held-out prompts are configured.
        """
        if self.supply.evaluator is None:
            return {}
        self._take_evaluation(wait=True)
        self.stop.activity.begin(f"the evaluation after step {step}")
        result = self.supply.evaluator.run(self.stepper.version)
        self.outputs.log.heldout(step, result)
        return {f"eval/{name}": value for name, value in result.metrics.items()}

    def _evaluate_between(self, step: int) -> dict[str, float]:
        """Evaluate after a step that others follow: at once, or beside these steps.

        Engines that run ahead sample for the next steps anyway, so an evaluation is begun beside
        them, and logged when it is there. A run that ranks its checkpoints by a held-out score
        needs the score when it saves.
        """
        trainer, evaluator = self.config.trainer, self.supply.evaluator
        ranked = trainer.keep_best and trainer.best_metric.startswith("eval/")
        if evaluator is None or ranked or self.config.schedule.max_staleness == 0:
            return self.evaluate(step)
        self._take_evaluation(wait=True)
        evaluator.begin(self.stepper.version)
        self._evaluating = step
        return {}

    def _take_evaluation(self, *, wait: bool) -> None:
        """Log the evaluation that goes on, under the step after which it was begun."""
        begun, evaluator = self._evaluating, self.supply.evaluator
        if begun is None or evaluator is None:
            return
        if wait:
            self.stop.activity.begin(f"the evaluation after step {begun}")
        result = evaluator.finish() if wait else evaluator.poll()
        if result is not None:
            self.outputs.log.heldout(begun, result)
            self._evaluating = None

    def save(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a checkpoint of the state after `step`, written while the next steps run."""
        self.stop.activity.begin(f"the checkpoint of step {step}")
        score = metrics.get(self.config.trainer.best_metric)
        self.saver.begin(step, version=self.stepper.version, score=score)
        self._saved = step

    def _check_best_metric(self, measured: Mapping[str, float]) -> None:
        """Raise ValueError where no step measures `trainer.best_metric`.

        Checkpoints are ranked by that metric, so the run would keep none as the best.
        """
        trainer = self.config.trainer
        scored = trainer.best_metric.startswith("eval/") and self.supply.evaluator is not None
        if trainer.keep_best and not scored and trainer.best_metric not in measured:
            near = difflib.get_close_matches(trainer.best_metric, measured, n=1, cutoff=0.0)
            raise ValueError(
                f"trainer.best_metric={trainer.best_metric!r} is not measured by this run; did you "
                f"mean {near[0]}? trainer.keep_best=0 keeps the newest checkpoints only"
            )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
