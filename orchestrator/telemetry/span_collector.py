"""Collect the spans of every worker into the driver: one round of calls per step, all at once.

The collection never fails and hardly waits: time accounting must not end a run, nor slow it down. A
worker that doesn't answer in time is left out and not called again before it has answered. Spans
are interpreted in `accounting.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import ray.exceptions

from workers.calls import bind
from workers.spans import Recorded, SpanReporter, Timeline
from workers.worker_group import Pending, WorkerError, WorkerGroup

WAIT_S = 2.0  # for one round of answers


class SpanCollector:
    """Collector of spans from the workers of some groups.

    Args:
        groups: of the workers; who belongs to a group may change.
    """

    def __init__(self, groups: Sequence[WorkerGroup[SpanReporter]]) -> None:
        self._groups = list(groups)
        self._asked: dict[tuple[str, int], Pending[Recorded]] = {}  # by role and index

    def collect(self) -> list[Timeline]:
        """Return a timeline, since its last one, for every worker that answers."""
        deadline = time.monotonic() + WAIT_S
        take = bind(SpanReporter.take_spans)
        asked = {
            (group.role, index): group.start_one(index, take, timeout_s=WAIT_S)
            for group in self._groups
            for index in group.ranks
            if (group.role, index) not in self._asked
        }
        for pending in asked.values():
            pending.ready(wait_s=max(0.0, deadline - time.monotonic()))
        self._asked |= asked
        answered = [worker for worker, pending in self._asked.items() if pending.ready()]
        timelines = [self._timeline(self._asked.pop(worker), *worker) for worker in answered]
        return [timeline for timeline in timelines if timeline is not None]

    @staticmethod
    def _timeline(pending: Pending[Recorded], role: str, index: int) -> Timeline | None:
        try:
            spans, levels = pending.result()[0]
        except (
            WorkerError,
            ray.exceptions.RayError,
        ):  # the worker died, which is handled elsewhere
            return None
        return Timeline(role=role, index=index, spans=spans, levels=levels)
