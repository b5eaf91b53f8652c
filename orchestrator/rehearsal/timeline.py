"""Simulated time: events in the order in which they are due, and a `now` that only waiting moves.

The driver's own work takes no simulated time. Whoever would wait for a remote call runs the
timeline instead, until what it waits for has happened.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable


class SimulatedTime:
    """Seconds since the run began, and what is still to happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []  # a heap; ties: oldest first
        self._serial = 0

    def at(self, moment: float, event: Callable[[], None]) -> None:
        """Let `event` happen at `moment`, or now if that is past."""
        self._serial += 1
        heapq.heappush(self._due, (max(moment, self.now), self._serial, event))

    def run_until(self, moment: float) -> None:
        """Let everything happen that is due by then, and make it `moment`."""
        while self._due and self._due[0][0] <= moment:
            self._step()
        self.now = max(self.now, moment)

    def run_while(self, waiting: Callable[[], bool], *, limit: float) -> None:
        """Run until `waiting` is over, until the moment `limit` at most."""
        while waiting():
            if not self._due or self._due[0][0] > limit:
                self.now = max(self.now, limit)
                return
            self._step()

    def _step(self) -> None:
        self.now, _, event = heapq.heappop(self._due)
        event()
