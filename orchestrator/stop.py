"""Stop a run without losing its work: after SIGTERM the step ends, is saved, and the run exits.

`ballast stop`, Slurm before a time limit and Kubernetes before it takes a pod all send SIGTERM.
Runs in the driver. An interrupt from the keyboard is not handled here: it stops at once.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM


class StoppedError(RuntimeError):
    """End of a run whose stop was requested and whose checkpoint is saved."""


class StopRequest:
    """Handler of SIGTERM while entered: the first sets `requested`, a second exits at once."""

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
