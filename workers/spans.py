"""Record the activity of a worker over time: the vocabulary of time accounting, and its log.

Every worker process keeps a `SpanLog`, which costs two dictionary updates per call or sample; the
driver empties the log once per step (`orchestrator/telemetry/span_collector.py`). At any moment a
worker counts as doing one thing, the first of `ACTIVITIES` that is going on, so its spans never
overlap. Times are seconds of the wall clock, which is one clock for all processes on a node; clocks
of different nodes agree as far as the nodes keep time. Nothing is interpreted here: that is
`orchestrator/telemetry/accounting.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, Literal, ParamSpec, Protocol, TypeVar, get_args

Activity = Literal[
    "switch",  # colocated: going to sleep, waking, moving optimizer state
    "publish",  # weights are sent, or received
    "checkpoint",  # state is copied for a checkpoint
    "follow",  # the reference takes over weights of the policy
    "learn",
    "credit",
    "generate",  # at least one request is with the engine
    "score",  # log-probs, values; rewards, in the reward role
    "attest",  # evidence of a publication
    "environment",  # no request is with the engine; what is not finished is in its environment
    "wait_for_reward",  # all that is not finished waits for its score
    "drive",  # the driver's own work
]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)

MAX_SPANS = 50_000  # kept between two collections; beyond that the oldest are removed
MAX_LEVELS = 128  # points of a level's curve between two collections
FINEST_S = 0.01  # between two of them


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """One activity without a break, [begin_s, end_s) on the wall clock.

    Example:
        Span(activity="learn", begin_s=1763719200.25, end_s=1763719201.5)
    """

    activity: Activity
    begin_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """Spans of one worker since the last collection.

    Example, an engine that sampled with up to two requests and then waited for a reward:
        Timeline(
            role="rollout",
            index=0,
            spans=(
                Span(activity="generate", begin_s=1763719200.0, end_s=1763719202.5),
                Span(activity="wait_for_reward", begin_s=1763719202.5, end_s=1763719202.75),
            ),
            levels=((1763719200.0, 2), (1763719201.5, 1), (1763719202.5, 0)),
        )

    Attributes:
        role: rollout, reward, learner, reference, critic or driver.
        index: of the engine, worker or rank.
        spans: in order, without overlap.
        levels: (time in s, samples with the engine) at each change of that number, thinned.
    """

    role: str
    index: int
    spans: tuple[Span, ...]
    levels: tuple[tuple[float, int], ...] = ()


Recorded = tuple[tuple[Span, ...], tuple[tuple[float, int], ...]]  # spans, levels


class SpanLog:
    """Log of one worker's spans, and of the number of samples with its engine.

    Args:
        now: the wall clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._going_on: Counter[Activity] = Counter()
        self._current: Activity | None = None
        self._since = 0.0
        self._spans: list[Span] = []
        self._levels: list[tuple[float, int]] = []
        self._spacing_s = FINEST_S

    @contextmanager
    def doing(self, activity: Activity) -> Iterator[None]:
        """Count the time inside the block as `activity`; several blocks may be open at once."""
        self._change(activity, 1)
        try:
            yield
        finally:
            self._change(activity, -1)

    def take(self) -> Recorded:
        """Return the spans and levels since the last call.

        An activity that is going on is cut at this moment: the first part is returned now, the rest
        by the next call.
        """
        now = self._now()
        self._end_span(now)
        if self._levels or self._going_on["generate"]:
            self._levels.append((now, self._going_on["generate"]))  # thinning may have lost it
        spans, levels = tuple(self._spans), tuple(self._levels)
        self._spans, self._levels, self._spacing_s = [], [], FINEST_S
        return spans, levels

    def _change(self, activity: Activity, by: int) -> None:
        now = self._now()
        self._going_on[activity] += by
        count = self._going_on[activity]
        if activity == "generate":
            self._note_level(now, count)
        if count != max(by, 0):
            return  # others of its kind go on: it neither began nor ended
        current = next((name for name in ACTIVITIES if self._going_on[name]), None)
        if current != self._current:
            self._end_span(now)
            self._current = current

    def _end_span(self, now: float) -> None:
        if self._current is not None and now > self._since:
            span = Span(activity=self._current, begin_s=self._since, end_s=now)
            self._spans.append(span)
            if len(self._spans) > MAX_SPANS:
                del self._spans[: MAX_SPANS // 2]
        self._since = now

    def _note_level(self, now: float, level: int) -> None:
        if level and self._levels and now < self._levels[-1][0] + self._spacing_s:
            return
        self._levels.append((now, level))
        if len(self._levels) > MAX_LEVELS:
            self._levels = self._levels[::2]
            self._spacing_s *= 2


class SpanReporter(Protocol):
    """A worker that the driver collects spans from."""

    def take_spans(self) -> Recorded:
        """Return what the worker did since the last call."""


class HasSpans(Protocol):
    """A worker that keeps a log."""

    spans: SpanLog


W = TypeVar("W", bound=HasSpans)
P = ParamSpec("P")
R = TypeVar("R")


def recorded(
    activity: Activity,
) -> Callable[[Callable[Concatenate[W, P], R]], Callable[Concatenate[W, P], R]]:
    """Count every call of the decorated method as `activity` in the `spans` of its worker."""

    def decorate(method: Callable[Concatenate[W, P], R]) -> Callable[Concatenate[W, P], R]:
        @wraps(method)
        def call(self: W, /, *args: P.args, **kwargs: P.kwargs) -> R:
            with self.spans.doing(activity):
                return method(self, *args, **kwargs)

        return call

    return decorate
