"""Stopping a run without losing its work: SIGTERM lets the step end, saves, and exits.

`ballast stop`, Slurm before a time limit and Kubernetes before it takes a pod all send SIGTERM.
An interrupt from the keyboard is not handled here: it stops at once.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM


class StoppedError(RuntimeError):
    """The run was asked to stop and has saved a checkpoint."""


class StopRequest:
    """While it is entered, the first SIGTERM sets `requested`; a second one exits at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _handle(self, _signum: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise SystemExit(EXIT_CODE)
        self.requested = True
