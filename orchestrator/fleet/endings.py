"""End engines that leave a job, without waiting: ask each to shut down, then end its process.

Used by `membership.py` in the driver, which decides who leaves. Nothing is sampled again here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from orchestrator.fleet.launcher import EngineLauncher
from workers.calls import bind
from workers.rollout.worker import RolloutWorker
from workers.worker_group import Pending, WorkerGroup

END_S = 20.0  # longest that an engine may take to shut down


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """Engine that shuts down."""

    number: int
    handle: Any
    pending: Pending[None]
    deadline: float


class Endings:
    """Engines that have left a job and still shut down.

    Args:
        launcher: ends their processes, and gives their places back.
    """

    def __init__(self, launcher: EngineLauncher) -> None:
        self._launcher = launcher
        self._endings: list[_Ending] = []

    def __len__(self) -> int:
        return len(self._endings)

    def begin(self, number: int, handle: Any) -> None:
        """Ask an engine to shut down; return at once."""
        engine: WorkerGroup[RolloutWorker] = WorkerGroup("rollout", {number: handle})
        pending = engine.start(bind(RolloutWorker.shutdown), timeout_s=END_S)
        deadline = time.monotonic() + END_S
        self._endings.append(
            _Ending(number=number, handle=handle, pending=pending, deadline=deadline)
        )

    def finish(self) -> None:
        """End the processes of those that have shut down, or had the time to."""
        for ending in list(self._endings):
            if ending.pending.ready() or time.monotonic() > ending.deadline:
                self._endings.remove(ending)
                self._launcher.end(ending.number, ending.handle)
