"""Name the outputs of a run, as the loop and the steps use them.

Runs in the driver. The outputs themselves are written in `telemetry` and `checkpoints`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from orchestrator.checkpoints.recorder import Recorder
from orchestrator.telemetry.accounting import Accounting
from orchestrator.telemetry.clock import Clock
from orchestrator.telemetry.heldout import HeldoutResult
from orchestrator.telemetry.profiling import StepProfiler


class Log(Protocol):
    """Receiver of finished steps and evaluations."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a finished step."""

    def heldout(self, step: int, result: HeldoutResult) -> None:
        """Take the result of an evaluation after `step`."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Outputs of a run.

    Attributes:
        log: gets every finished step and evaluation.
        accounting: divides the time of a step among roles and activities.
        profiler: records chosen steps of the learner.
        recorder: writes the trajectories of every step; None where nothing is recorded.
        make_clock: makes the clock of one step.
    """

    log: Log
    accounting: Accounting
    profiler: StepProfiler | None = None
    recorder: Recorder | None = None
    make_clock: Callable[[], Clock] = Clock

    def flush(self) -> None:
        """Wait until every record that was begun is on disk."""
        if self.recorder is not None:
            self.recorder.flush()
