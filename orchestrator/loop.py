"""Run steps until the run ends: evaluate, save and stop between them.

One loop serves every run. It calls `step` of a `Trainer` (train, replay) or of a `Collector`
(rollout_only) and imports neither. Runs in the driver. The order inside a step is in `trainer.py`;
read that first.

    after a step        when
    log its metrics     always
    evaluate            every `trainer.eval_every` steps, and after the last
    save                every `trainer.checkpoint_every` steps, after the last, and before stopping;
                        after every step where nothing learns, because it costs a small file
    stop                when SIGTERM came, or the supply is at its end
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from conf.schema import TrainConfig
from orchestrator.checkpoints.checkpoint import Checkpoint
from orchestrator.checkpoints.saving import Saver
from orchestrator.fleet.pool import EnginesLostError
from orchestrator.outputs import Outputs
from orchestrator.step.skipped_steps import NonFiniteGradientsError
from orchestrator.stop import StoppedError, StopRequest
from orchestrator.supply.source import NothingLeftError
from orchestrator.supply.supply import Supply


class Stepper(Protocol):
    """Step of one kind of run, as the loop calls it.

    Attributes:
        version: label of the weights that the next step samples from.
    """

    version: int

    def step(self, step: int) -> dict[str, float]:
        """Do one step and return its metrics.

        Raises:
            NothingLeftError: the supply is at its end; nothing was changed.
            EnginesLostError: no engine is left; nothing was changed.
            NonFiniteGradientsError: the last updates were skipped; the weights are as before them.
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

    def begin(self, checkpoint: Checkpoint | None) -> int:
        """Bring engines and learner to the state before the first step; return that step's number.

        Without a checkpoint the first step is 1, and the held-out prompts are scored before it.
        """
        if checkpoint is not None:
            self.saver.restore(checkpoint)
            self.stepper.version = checkpoint.version
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
            StoppedError: a stop was requested, and everything is on disk.
        """
        try:
            ended = self._run(first_step)
            self.saver.finish()
        except BaseException:
            self.saver.finish_quietly()
            raise
        self.outputs.flush()
        if ended and self.stop.requested:
            raise StoppedError(ended)
        return ended

    def _run(self, first_step: int) -> str:
        trainer, last = self.config.trainer, self.config.trainer.total_steps
        for step in range(first_step, last + 1):
            try:
                stepped = self._step(step)
            except NothingLeftError as reason:
                if step == first_step:
                    raise
                self.save(step - 1, self.evaluate(step - 1))
                return f"ended after step {step - 1}: {reason}"
            metrics = stepped | self.saver.poll()
            self.outputs.log.step(step, metrics)
            if step == last or _is_due(step, trainer.eval_every):
                metrics |= self.evaluate(step)
            if step == first_step:
                self._check_best_metric(metrics)
            stopping = self.stop.requested and step < last
            every = trainer.checkpoint_every if trainer.learns else 1
            if step == last or stopping or _is_due(step, every):
                self.save(step, metrics)
            if stopping:
                return f"stopped after step {step}, saved; resume=auto goes on from there"
        return ""

    def _step(self, step: int) -> dict[str, float]:
        """Do one step; save the weights if the step fails and leaves them whole."""
        try:
            return self.stepper.step(step)
        except EnginesLostError:
            if step > 1:
                self.save(step - 1, {})
            raise
        except NonFiniteGradientsError:
            self.save(step, {})
            raise

    def evaluate(self, step: int) -> dict[str, float]:
        """Score the held-out prompts under the engines' present weights; return `eval/...`.

        Returns no metric where no held-out prompts are configured.
        """
        if self.supply.evaluator is None:
            return {}
        try:
            result = self.supply.evaluator.run(self.stepper.version)
        except EnginesLostError:
            if step > 0:
                self.save(step, {})
            raise
        self.outputs.log.heldout(step, result)
        return {f"eval/{name}": value for name, value in result.metrics.items()}

    def save(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a checkpoint of the state after `step`, written while the next steps run."""
        score = metrics.get(self.config.trainer.best_metric)
        self.saver.begin(step, version=self.stepper.version, score=score)

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
