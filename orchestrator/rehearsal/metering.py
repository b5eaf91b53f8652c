"""Measure the driver's CPU seconds, without those of the simulation in the same process.

Simulated time is not measured here (`timeline.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class CpuMeter:
    """Meter of this process's CPU seconds, divided between driver and simulation.

    Code inside `simulating` stands for engines, ranks and time; all other code is the driver.
    """

    def __init__(self) -> None:
        self._began = time.process_time()
        self._simulating_s = 0.0

    @contextmanager
    def simulating(self) -> Iterator[None]:
        """Count the time inside the block as the simulation's; never nested."""
        began = time.process_time()
        try:
            yield
        finally:
            self._simulating_s += time.process_time() - began

    @property
    def simulating_s(self) -> float:
        """Seconds spent on the simulation."""
        return self._simulating_s

    @property
    def driver_s(self) -> float:
        """Seconds spent on everything else."""
        return time.process_time() - self._began - self._simulating_s
