"""Simulate the decoding of one engine: continuous batching in closed form between two events.

A step of the engine draws one token for each of n running sequences, which look back at k tokens
together, and takes `a + b n + c k` seconds. While n stays the same, k grows by n a step, so that m
steps take

    m (a + b n + c k) + c n m^2 / 2

seconds: an engine is advanced to its next finished sequence in one go, over any number of steps. A
prompt is prefilled once for all siblings, and meanwhile nothing is decoded. A full KV cache, which
makes an engine compute sequences again, is not simulated; set `rollout.max_num_seqs` to a number
that fits. Time itself is `timeline.py`; the calls of the driver are `engines.py`.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

from workers.data.requests import EngineLoad

INSTANT_S = 1e-6  # less between two spans is rounding


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodingSpeed:
    """Speeds of one engine.

    Attributes:
        step_s: a, seconds of a step.
        sequence_s: b, seconds more for every running sequence.
        kv_token_s: c, seconds more for every token that is looked back at.
        prefill_tokens_per_s: of prompts, and of running sequences whose keys and values are
            computed again.
    """

    step_s: float
    sequence_s: float
    kv_token_s: float
    prefill_tokens_per_s: float


@dataclass(kw_only=True, slots=True, eq=False)
class Siblings:
    """Responses to one prompt, to be decoded by one engine.

    Attributes:
        prompt_tokens: of the prompt.
        lengths: tokens of every response.
        versions: of the weights that drew the first token of each that has begun.
    """

    prompt_tokens: int
    lengths: list[int]
    versions: list[int] = field(default_factory=list)


@dataclass(kw_only=True)
class Decoder:
    """One engine's batch. Times are seconds of the timeline.

    Attributes:
        busy_s: with a sequence running, pauses apart.
        filled_s: running sequences integrated over time.
        drawn: tokens of finished responses.
    """

    speed: DecodingSpeed
    max_running: int
    version: int = 0
    busy_s: float = 0.0
    filled_s: float = 0.0
    drawn: int = 0
    _generating: list[tuple[float, float]] = field(default_factory=list)  # since last asked
    _time: float = 0.0
    _steps: float = 0.0  # taken so far
    _kv_tokens: float = 0.0
    _paused_s: float = 0.0  # still to wait before anything else
    _prefill_s: float = 0.0  # then to prefill before the next step
    _waiting: deque[Siblings] = field(default_factory=deque)  # the first may have begun
    _running: list[tuple[float, int, int, Siblings]] = field(default_factory=list)
    _serial: int = 0
    _queued: int = 0  # responses that wait
    _least_queued: int = 0  # since the last report
    _reported: float = 0.0  # steps, at the last report

    def add(self, siblings: Siblings, moment: float) -> None:
        """Queue responses, and begin those for which there is room at once."""
        self._waiting.append(siblings)
        self._queued += len(siblings.lengths)
        if len(self._running) < self.max_running:
            self.advance(moment)
            self._admit()

    def remove(self, siblings: Siblings, moment: float) -> None:
        """Remove the unfinished responses of a prompt, and begin others in their place."""
        self.advance(moment)
        if siblings in self._waiting:
            self._waiting.remove(siblings)
            self._queued -= len(siblings.lengths) - len(siblings.versions)
        for end, _, number, owner in self._running:
            if owner is siblings:
                drawn = siblings.lengths[number] - (end - self._steps)
                self._kv_tokens -= siblings.prompt_tokens + drawn
        self._running = [entry for entry in self._running if entry[3] is not siblings]
        heapq.heapify(self._running)
        self._admit()

    def pause(self, seconds: float, moment: float, *, version: int) -> None:
        """Stop for `seconds`, and go on with other weights: keys and values are computed again."""
        self.advance(moment)
        self.version = version
        self._paused_s += seconds
        self._prefill_s += self._kv_tokens / self.speed.prefill_tokens_per_s

    def next_end(self) -> float:
        """Return the moment at which the next response is complete; infinity if none runs."""
        if not self._running:
            return math.inf
        steps = max(0.0, self._running[0][0] - self._steps)
        return self._time + self._paused_s + self._prefill_s + self._seconds(steps)

    def advance(self, moment: float) -> None:
        """Decode until `moment`, before which no response may end."""
        elapsed, self._time = moment - self._time, moment
        paused = min(self._paused_s, elapsed)
        self._paused_s -= paused
        elapsed -= paused
        if elapsed <= 0 or not self._running:
            return
        self.busy_s += elapsed
        begin = moment - elapsed
        if self._generating and begin - self._generating[-1][1] < INSTANT_S:
            begin = self._generating.pop()[0]
        self._generating.append((begin, moment))
        self.filled_s += elapsed * len(self._running)
        prefilled = min(self._prefill_s, elapsed)
        self._prefill_s -= prefilled
        self._take(self._steps_in(elapsed - prefilled))

    def finish(self, moment: float) -> list[tuple[Siblings, int]]:
        """Advance to `next_end`, and take out all responses that are complete then.

        Returns:
            (siblings, number of the response among them) for each.
        """
        end = self._running[0][0]
        self.advance(moment)
        self._take(end - self._steps)  # exactly, whatever rounding made of it
        done = []
        while self._running and self._running[0][0] <= end:
            _, _, number, siblings = heapq.heappop(self._running)
            self._kv_tokens -= siblings.prompt_tokens + siblings.lengths[number]
            self.drawn += siblings.lengths[number]
            done.append((siblings, number))
        self._admit()
        return done

    def take_spans(self, moment: float) -> list[tuple[float, float]]:
        """Return the intervals (begin, end) since the last call in which sequences ran."""
        self.advance(moment)
        taken, self._generating = self._generating, []
        return taken

    def report(self) -> EngineLoad:
        """Report the load since the last report, as a scheduler would."""
        steps, waiting = int(self._steps - self._reported), self._least_queued
        self._reported, self._least_queued = self._steps, self._queued
        return EngineLoad(steps=steps, waiting=waiting)

    def _admit(self) -> None:
        """Begin waiting responses while there is room.

        `_running` is a heap of (last step, serial, number of the response, its siblings).
        """
        while self._waiting and len(self._running) < self.max_running:
            siblings = self._waiting[0]
            number = len(siblings.versions)
            siblings.versions.append(self.version)
            if number == 0:
                self._prefill_s += siblings.prompt_tokens / self.speed.prefill_tokens_per_s
            self._queued -= 1
            if number + 1 == len(siblings.lengths):
                self._waiting.popleft()
            end = self._steps + siblings.lengths[number]
            self._serial += 1
            heapq.heappush(self._running, (end, self._serial, number, siblings))
            self._kv_tokens += siblings.prompt_tokens
        self._least_queued = min(self._least_queued, self._queued)

    def _take(self, steps: float) -> None:
        self._steps += steps
        self._kv_tokens += steps * len(self._running)

    @property
    def _step_s(self) -> float:
        """Seconds of the next step."""
        speed = self.speed
        running = len(self._running) * speed.sequence_s
        return speed.step_s + running + speed.kv_token_s * self._kv_tokens

    def _seconds(self, steps: float) -> float:
        growth = self.speed.kv_token_s * len(self._running)
        return steps * self._step_s + growth * steps * steps / 2

    def _steps_in(self, seconds: float) -> float:
        """Return the number of steps in `seconds`: the inverse of `_seconds`."""
        growth, first = self.speed.kv_token_s * len(self._running), self._step_s
        if growth == 0.0:
            return seconds / first
        return (math.sqrt(first * first + 2 * growth * seconds) - first) / growth
