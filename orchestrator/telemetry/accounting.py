"""Divide a step's wall time among the activities of each role: bubble accounting.

    bubble/<role>/<activity>_frac    share of the step, mean over the role's workers

The shares of a role, `idle` among them, add up to 1. Workers record their spans
(`workers/spans.py`), the driver's clock records the waits of the loop; the driver cuts both to the
step's window and sums them. Time between two steps (evaluation, the copies for a checkpoint) is in
the trace and in no share. The shares are interpreted in `bubbles.py`, not here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import cast

from orchestrator.telemetry.clock import Clock
from orchestrator.telemetry.trace_file import TraceFile
from workers.spans import ACTIVITIES, Activity, Span, Timeline

IDLE = "idle"
OF_CLOCK: dict[str, Activity] = {"train": "learn"}  # the clock's names that are no activities
COUNTERS = {"staleness/max": "staleness", "ledger/in_flight": "groups in flight"}


class Accounting:
    """Account of the time of every step.

    Args:
        collect: returns the timelines of the workers since the last call.
        trace: file that gets the timelines too, or None.
    """

    def __init__(
        self,
        collect: Callable[[], Sequence[Timeline]] = tuple,
        trace: TraceFile | None = None,
    ) -> None:
        self._collect, self._trace = collect, trace
        self._later: dict[tuple[str, int], tuple[Span, ...]] = {}  # what ends after the last step
        self._seen: defaultdict[str, set[str]] = defaultdict(set)  # role -> activities

    def step(self, step: int, clock: Clock, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return `bubble/...` of the step that `clock` measured and that ends now.

        Args:
            step: its number.
            clock: the driver's spans.
            metrics: of the step, of which some are counters in the trace.
        """
        window = clock.began_s, clock.now()
        driver = driver_timeline(clock, window)
        with clock.span("account"):
            timelines = [driver, *self._collect()]
            if self._trace is not None:
                counters = {COUNTERS[name]: metrics[name] for name in COUNTERS if name in metrics}
                self._trace.write_step(step, window, timelines, counters)
            of_role: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
            for timeline in timelines:
                key = timeline.role, timeline.index
                spans = (*self._later.get(key, ()), *timeline.spans)
                self._later[key] = tuple(span for span in spans if span.end_s > window[1])
                of_role[timeline.role].append(shares(spans, *window))
            return {
                f"bubble/{role}/{activity}_frac": value
                for role, workers in of_role.items()
                for activity, value in self._mean(role, workers).items()
            }

    def finish(self) -> None:
        """Complete the trace with the spans after the last step."""
        if self._trace is not None:
            self._trace.finish(self._collect())

    def _mean(self, role: str, workers: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Average the role's workers; an activity of earlier steps that is missing counts as 0."""
        self._seen[role].update(*workers)
        return {
            activity: sum(worker.get(activity, 0.0) for worker in workers) / len(workers)
            for activity in sorted(self._seen[role])
        }


def driver_timeline(clock: Clock, window: tuple[float, float]) -> Timeline:
    """Build the driver's timeline: the waits of the loop, and its own work in between."""
    spans = [
        Span(activity=OF_CLOCK.get(name, cast("Activity", name)), begin_s=begin, end_s=end)
        for name, begin, end in clock.spans
    ]
    edges = [window[0], *(edge for span in spans for edge in (span.begin_s, span.end_s)), window[1]]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    spans += [
        Span(activity="drive", begin_s=begin, end_s=end) for begin, end in gaps if end > begin
    ]
    return Timeline(role="driver", index=0, spans=tuple(sorted(spans, key=lambda s: s.begin_s)))


def shares(spans: Sequence[Span], begin_s: float, end_s: float) -> dict[str, float]:
    """Return the shares of [begin_s, end_s) by activity, `idle` among them; they add up to 1.

    Of overlapping spans, the first in the order of `ACTIVITIES` counts alone. A window without
    length is idle.
    """
    if end_s <= begin_s:
        return {IDLE: 1.0}
    edges: list[tuple[float, int, Activity | None]] = [(begin_s, 0, None), (end_s, 0, None)]
    for span in spans:
        first, last = max(span.begin_s, begin_s), min(span.end_s, end_s)
        if first < last:
            edges += [(first, 1, span.activity), (last, -1, span.activity)]
    edges.sort(key=lambda edge: edge[0])
    going_on = dict.fromkeys(ACTIVITIES, 0)
    seconds: defaultdict[str, float] = defaultdict(float, {IDLE: 0.0})
    for (at, by, activity), (until, _, _) in pairwise(edges):
        if activity is not None:
            going_on[activity] += by
        if until > at:
            current = next((name for name in ACTIVITIES if going_on[name]), IDLE)
            seconds[current] += until - at
    return {name: value / (end_s - begin_s) for name, value in seconds.items()}
