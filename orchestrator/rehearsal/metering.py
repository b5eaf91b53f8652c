"""CPU seconds of the driver, apart from those of the simulation that runs in the same process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class CpuMeter:
    """Seconds of this process's CPU, by who asked for them.

    Whatever runs inside `simulating` stands for engines, ranks and time; all else is the driver.
    """

    def __init__(self) -> None:
        self._began = time.process_time()
        self._simulating_s = 0.0

    @contextmanager
    def simulating(self) -> Iterator[None]:
        """What runs inside is not the driver's; never nested."""
        began = time.process_time()
        try:
            yield
        finally:
            self._simulating_s += time.process_time() - began

    @property
    def simulating_s(self) -> float:
        """Spent on the simulation."""
        return self._simulating_s

    @property
    def driver_s(self) -> float:
        """Spent on everything else."""
        return time.process_time() - self._began - self._simulating_s
