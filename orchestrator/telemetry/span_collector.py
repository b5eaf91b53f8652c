"""Collect the spans of every worker into the driver: one round of calls per step, all at once.

The collection never fails and hardly waits: time accounting must not end a run, nor slow it down. A
worker that doesn't answer in time is left out and not called again before it has answered. Spans
are interpreted in `accounting.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import ray.exceptions

from workers.spans import Timeline
from workers.worker_group import WorkerGroup

WAIT_S = 2.0  # for one round of answers


class SpanCollector:
    """Collector of spans from the workers of some groups.

    Args:
        groups: of workers with `take_spans`; the members of a group may change.
    """

    def __init__(self, groups: Sequence[WorkerGroup]) -> None:
        self._groups = list(groups)
        self._asked: dict[Any, tuple[str, int]] = {}  # reference -> role and index

    def collect(self) -> list[Timeline]:
        """Return a timeline, since its last one, for every worker that answers."""
        silent = set(self._asked.values())
        asked = {
            handle.take_spans.remote(): (group.role, index)
            for group in self._groups
            for index, handle in zip(group.ranks, group.handles, strict=True)
            if (group.role, index) not in silent
        }
        if asked:
            ray.wait(list(asked), num_returns=len(asked), timeout=WAIT_S)
        self._asked |= asked
        if not self._asked:
            return []
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        timelines = [self._timeline(ref, *self._asked.pop(ref)) for ref in answered]
        return [timeline for timeline in timelines if timeline is not None]

    @staticmethod
    def _timeline(ref: Any, role: str, index: int) -> Timeline | None:
        try:
            spans, levels = ray.get(ref)
        except ray.exceptions.RayError:  # the worker died, which is handled elsewhere
            return None
        return Timeline(role=role, index=index, spans=spans, levels=levels)
