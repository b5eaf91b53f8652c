"""Route groups to engines: a pure account of the groups that engines hold, and of those that wait.

Groups go to the engine with the least outstanding samples among those below their limit; groups
above every limit wait here, so that each goes to the engine that is free first. A group stays on
one engine with all its siblings and turns, whose prefix that engine's cache holds. Runs in the
driver. Nothing here calls an engine or knows whether one lives: `pool.py` does.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Collection, Iterable

from orchestrator.fleet.concurrency import Concurrency
from workers.data.requests import EngineLoad, GroupRequest


class Routing:
    """Account of the groups in flight, by the number of the engine that holds them.

    Args:
        concurrency: the first limit of an engine; None sets no limit.
    """

    def __init__(self, *, concurrency: Concurrency | None) -> None:
        self._start = concurrency
        self._limits: dict[int, Concurrency] = {}  # of engines that reported
        self._outstanding: Counter[int] = Counter()  # samples
        self._held: dict[str, tuple[int, GroupRequest]] = {}
        self._queue: deque[GroupRequest] = deque()

    @property
    def num_groups(self) -> int:
        """Groups that wait or are held."""
        return len(self._queue) + len(self._held)

    def outstanding(self, engine: int) -> int:
        """Return the number of samples in the unfinished groups that the engine holds."""
        return self._outstanding[engine]

    def limit(self, engine: int) -> int | None:
        """Return the number of samples that the engine may hold; None without a limit."""
        control = self._limits.get(engine, self._start)
        return None if control is None else control.limit

    def add(self, requests: Iterable[GroupRequest]) -> None:
        """Queue groups to sample, behind those that wait already."""
        self._queue.extend(requests)

    def assign(self, engines: Iterable[int]) -> dict[int, list[GroupRequest]]:
        """Assign waiting groups to engines below their limit, oldest group first.

        Args:
            engines: numbers of the engines that may sample.

        Returns:
            Groups by the number of the engine that is to begin them.
        """
        shares: dict[int, list[GroupRequest]] = {}
        if not self._queue:
            return shares
        least = [(self._outstanding[engine], engine) for engine in engines]
        heapq.heapify(least)
        while self._queue and least:
            held, engine = least[0]
            request, limit = self._queue[0], self.limit(engine)
            total = held + request.num_samples
            if held and limit is not None and total > limit:
                heapq.heappop(least)
                continue
            self._held[request.group_id] = (engine, self._queue.popleft())
            self._outstanding[engine] = total
            shares.setdefault(engine, []).append(request)
            heapq.heapreplace(least, (total, engine))
        return shares

    def finish(self, group_id: str) -> bool:
        """Remove a group from its engine; return False where the group was withdrawn before."""
        if group_id not in self._held:
            return False
        engine, request = self._held.pop(group_id)
        self._outstanding[engine] -= request.num_samples
        return True

    def withdraw(self, group_ids: Iterable[str]) -> dict[int, list[str]]:
        """Remove groups; return those that an engine holds, by engine, for the engine to abort."""
        unwanted = dict.fromkeys(group_ids)
        self._queue = deque(r for r in self._queue if r.group_id not in unwanted)
        held: dict[int, list[str]] = {}
        for group_id in unwanted:
            if group_id in self._held:
                held.setdefault(self._held[group_id][0], []).append(group_id)
                self.finish(group_id)
        return held

    def requeue_groups(self, engine: int, group_ids: Collection[str]) -> int:
        """Queue groups that the engine still holds before all that wait; return their number."""
        again = [
            request
            for name, (owner, request) in self._held.items()
            if owner == engine and name in group_ids
        ]
        for request in again:
            self.finish(request.group_id)
        self._queue.extendleft(reversed(again))
        return len(again)

    def requeue(self, engine: int) -> int:
        """Queue the groups of a lost engine before all that wait; return the number of groups.

        The limit of the engine starts again, as the engine does.
        """
        self._limits.pop(engine, None)
        return self.requeue_groups(engine, self._held)

    def observe(self, engine: int, load: EngineLoad) -> None:
        """Move the engine's limit after a report, before its finished groups are taken off."""
        control = self._limits.get(engine, self._start)
        if control is not None:
            held = self._outstanding[engine]
            self._limits[engine] = control.observe(load, outstanding=held)
