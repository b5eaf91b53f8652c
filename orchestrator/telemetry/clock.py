"""Measure a step's wall time in the driver: named spans, in seconds.

The time of the workers is recorded in `workers/spans.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """Stopwatch of one step, which starts when it is made.

    Args:
        now: returns the time in seconds. The workers' spans are on the wall clock; a rehearsal
            gives its simulated clock.
        begin: is told the name of every span that begins, and "" when it ends.

    Attributes:
        began_s: time at which the clock was made.
        spans: (name, begin, end) of every span, in order.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.time,
        *,
        begin: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.now, self._begin = now, begin
        self.began_s = now()
        self.spans: list[tuple[str, float, float]] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Attribute the time inside the block to `name`."""
        began = self.now()
        self._begin(name)
        yield
        self._begin("")
        self.spans.append((name, began, self.now()))

    def metrics(self) -> dict[str, float]:
        """Return `time/<name>_s` of every span, `time/other_s` and `time/step_s`."""
        total = self.now() - self.began_s
        seconds: dict[str, float] = {}
        for name, began, ended in self.spans:
            seconds[name] = seconds.get(name, 0.0) + ended - began
        other = total - sum(seconds.values())
        return {
            **{f"time/{name}_s": value for name, value in seconds.items()},
            "time/other_s": other,
            "time/step_s": total,
        }
