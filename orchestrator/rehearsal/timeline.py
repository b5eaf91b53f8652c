"""Simulate time: events in the order in which they are due, and a `now` that only waiting moves.

The driver's own work takes no simulated time. Code that would wait for a remote call runs the
timeline instead, until the awaited event has happened. Part of the rehearsing process; CPU time is
measured in `metering.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable


class SimulatedTime:
    """Simulated clock: seconds since the run began, and the events still to happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []  # a heap; ties: oldest first
        self._serial = 0

    def at(self, moment: float, event: Callable[[], None]) -> None:
        """Schedule `event` at `moment`, or now if `moment` is past."""
        self._serial += 1
        heapq.heappush(self._due, (max(moment, self.now), self._serial, event))

    def run_until(self, moment: float) -> None:
        """Run all events that are due until `moment`, and set the time to `moment`."""
        while self._due and self._due[0][0] <= moment:
            self._step()
        self.now = max(self.now, moment)

    def run_while(self, waiting: Callable[[], bool], *, limit: float) -> None:
        """Run events while `waiting` returns True, until the moment `limit` at most."""
        while waiting():
            if not self._due or self._due[0][0] > limit:
                self.now = max(self.now, limit)
                return
            self._step()

    def _step(self) -> None:
        self.now, _, event = heapq.heappop(self._due)
        event()
