"""Compute one step of `trainer=rollout_only`: sample with a model as it is, score, and record.

The engines hold the weights of the model folder, version 0, from the first prompt to the last. A
step takes `trainer.prompts_per_step` groups of the supply and writes all their samples, failed ones
with their outcome, so that `rollout=replay` can train from the record. In the ledger a recorded
prompt is "trained" at its step. Runs in the driver. The order of steps, checkpoints and the end are
in `loop.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.outputs import Outputs
from orchestrator.step.batch import sample_metrics
from orchestrator.supply.group_files import places
from orchestrator.supply.source import NothingToTrainError
from orchestrator.supply.supply import Supply
from orchestrator.telemetry.counting import describe_reasons


@dataclass(kw_only=True)
class Collector:
    """Step of a run without a learner.

    Attributes:
        supply: gives groups of finished samples.
        outputs: record and account for the step.
        version: label of the weights in the model folder.
        trained: the last step that is recorded.
        measured: metrics of that step.
    """

    supply: Supply
    outputs: Outputs
    version: int = 0
    trained: int | None = 0
    measured: dict[str, float] = field(default_factory=dict)

    def step(self, step: int) -> dict[str, float]:
        """Take groups, begin to write them, and return the metrics.

        Raises:
            NothingToTrainError: no group has samples enough to train.
        """
        clock, groups = self.outputs.make_clock(), self.supply.groups
        with clock.span("generate"):
            taken = groups.take(step, self.version, lambda group: None)
        groups.run_ahead(self.version)
        if not taken.groups:
            raise NothingToTrainError(
                f"no group can be recorded: groups dropped: {describe_reasons(taken.dropped)}; "
                f"samples failed: {describe_reasons(taken.failed)}. Check the reward and the "
                "prompts"
            )
        if self.outputs.recorder is not None:
            slices, batches = places(taken.groups)
            self.outputs.recorder.write(step, slices, batches, [])
        metrics = {
            **sample_metrics([meta for group in taken.groups for meta in group.metas]),
            **taken.metrics(),
        }
        self.trained, self.measured = step, metrics | clock.metrics()
        metrics |= groups.metrics() | self.supply.ledger.metrics()
        metrics |= self.outputs.accounting.step(step, clock, metrics)
        metrics |= clock.metrics()
        metrics["rollout/tokens_per_s"] = metrics["rollout/tokens"] / metrics["time/generate_s"]
        return metrics
