"""Account of the progress of an engine and of the requests that it holds: what stands still?

A time limit on a whole response would count the wait for a place in the batch, and would need to
know how long a response may be. So the limit is on progress: an engine that holds requests makes
steps, and a response that runs gains tokens. Pure arithmetic on what the rollout worker's process
reads of vLLM; nothing is ended here, `process.py` and `engine.py` do that.

    request   tokens   the queue   the engine's steps   after the limit
    a         12       empty       go on                a stands still
    b         0        empty       go on                nothing: b may be read in, or wait
    c         12       not empty   go on                nothing: c may have lost its place
    a, b, c   any      any         stopped              the engine hangs
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class Progress:
    """Progress of one engine.

    Attributes:
        hangs: True where the engine held requests and made no step for the whole limit.

    Args:
        limit_s: longest time without progress, in seconds.
        clock: seconds that never go back.
    """

    def __init__(self, limit_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_s, self._clock = limit_s, clock
        self.hangs = False
        self._steps, self._stepped = 0, clock()
        self._gained: dict[str, tuple[int, float]] = {}  # request -> tokens, and since when

    def observe(
        self, tokens: Mapping[str, int], *, steps: int, waiting: int, paused: bool
    ) -> list[str]:
        """Take note of where the requests are; return those that run and stand still.

        Args:
            tokens: sampled so far, by request.
            steps: that the engine has made.
            waiting: requests that wait inside the engine.
            paused: True where the engine may make no step, as while its weights are replaced.
        """
        now = self._clock()
        if steps != self._steps or paused or not tokens:
            self._steps, self._stepped = steps, now
        gained = {}
        for request, count in tokens.items():
            before = self._gained.get(request)
            stood = before is not None and before[0] == count and count and not (waiting or paused)
            gained[request] = before if before and stood else (count, now)
        self._gained = gained
        self.hangs = now - self._stepped > self.limit_s
        return [name for name, (_, since) in gained.items() if now - since > self.limit_s]
