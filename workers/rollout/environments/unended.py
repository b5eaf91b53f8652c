"""Keep the rollouts of one worker that go on after they were cancelled.

Such a rollout draws no more, but its environment holds memory, and perhaps a thread that computes.
Their number is bounded. Runs in the rollout worker. Ends none of them.
"""

from __future__ import annotations

import asyncio
import logging

MOST = 64


class Unended:
    """Rollouts whose environments did not end when they were cancelled.

    Args:
        most: of them; a worker that has so many begins no other rollout.
    """

    def __init__(self, *, most: int = MOST) -> None:
        self._most = most
        self._tasks: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        """Return the number of rollouts that go on."""
        return len(self._tasks)

    @property
    def full(self) -> bool:
        """True where no other rollout should begin."""
        return len(self._tasks) >= self._most

    def add(self, playing: asyncio.Task[object]) -> None:
        """Keep a rollout until it ends."""
        self._tasks.add(playing)
        playing.add_done_callback(self._forget)
        logging.getLogger(__name__).warning(
            "%d rollout(s) go on after they were cancelled (the worker takes %d): an environment "
            "must let asyncio.CancelledError pass",
            len(self._tasks),
            self._most,
        )

    def _forget(self, playing: asyncio.Task[object]) -> None:
        self._tasks.discard(playing)
        if not playing.cancelled():
            playing.exception()  # seen: asyncio need not report it
