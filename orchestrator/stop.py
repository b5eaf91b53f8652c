"""Stop a run without losing its work: a signal is a request, which the run follows where it can.

`ballast stop`, Slurm before a time limit and Kubernetes before it takes a pod all send SIGTERM;
Ctrl-C is SIGINT. Groups that are being sampled are given back at once: what is finished of them is
saved, the rest is sampled again. An update of the weights is finished first. Then the run saves and
ends. Runs in the driver's main thread.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

from orchestrator.telemetry.display.activity import Activity

EXIT_CODE = 128 + signal.SIGTERM
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(RuntimeError):
    """End of a run that was asked to stop and has saved what it had.

    Attributes:
        exit_code: of the command.
    """

    def __init__(self, message: str, exit_code: int = EXIT_CODE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopRequest:
    """Request to stop: the first signal sets `requested` while it is entered, a second one exits.

    Args:
        activity: what the run does at this moment, which the answer to the signal names.

    Attributes:
        requested: True from the first signal on.
        activity: as given.
    """

    def __init__(self, activity: Activity | None = None) -> None:
        self.requested = False
        self.activity = activity or Activity()
        self._exit_code = EXIT_CODE
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise where the run was asked to stop; called wherever it waits for samples.

        Raises:
            StoppedError: it was.
        """
        if self.requested:
            raise self.stopped(f"stopped in {self.activity.doing}")

    def stopped(self, message: str) -> StoppedError:
        """Return the error that ends the run, with the exit code of the signal that came."""
        return StoppedError(message, self._exit_code)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(EXIT_CODE)
        self.requested, self._exit_code = True, 128 + number
        # Not through Python's streams: the signal may have come while one of them was written.
        os.write(
            sys.__stderr__.fileno() if sys.__stderr__ else 2,
            f"asked to stop in {self.activity.doing}: what is sampled is given back, what is "
            "trained is finished, then a checkpoint is written; a second signal exits at "
            "once\n".encode(),
        )
