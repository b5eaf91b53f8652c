"""Where a step's wall time goes: named spans, in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """Starts when it is made.

    Args:
        now: the time in seconds; a rehearsal gives its simulated one.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._began = now()
        self._spans: dict[str, float] = {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Attribute what runs inside to `name`."""
        began = self._now()
        yield
        self._spans[name] = self._spans.get(name, 0.0) + self._now() - began

    def metrics(self) -> dict[str, float]:
        """`time/<name>_s` of every span, `time/other_s` and `time/step_s`."""
        total = self._now() - self._began
        spans = {f"time/{name}_s": seconds for name, seconds in self._spans.items()}
        other = total - sum(self._spans.values())
        return {**spans, "time/other_s": other, "time/step_s": total}
