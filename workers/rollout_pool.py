"""The driver's side of the rollout workers: groups out, finished groups in, no token in between.

`submit` gives every group to the worker with the least outstanding samples; `poll` returns groups
as they finish, in any order. Each worker always has one `collect` call open, which doubles as its
heartbeat. The trajectories stay in the object store; a finished group is its metadata and the place
of its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from workers.group import WorkerError, WorkerGroup
from workers.requests import GroupRequest
from workers.trajectory import TrajectoryMeta

HEARTBEAT_S = 5.0  # how long a worker may hold an open `collect` without a finished group


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutGroup:
    """The finished siblings of one prompt: metadata, and rows [start, start + len) of a batch."""

    group_id: str
    metas: tuple[TrajectoryMeta, ...]
    batch: Any  # object reference of a record batch
    start: int


class RolloutPool:
    """All rollout engines as one."""

    def __init__(self, group: WorkerGroup, *, silence_s: float) -> None:
        self._group = group
        self._silence_s = silence_s
        self._load = [0] * len(group)  # samples outstanding
        self._requests: dict[str, tuple[int, GroupRequest]] = {}
        self._open: dict[Any, tuple[int, Any]] = {}  # metas ref -> worker, batch ref
        self._kept: list[RolloutGroup] = []  # finished while somebody waited for other groups

    @property
    def num_in_flight(self) -> int:
        """Groups submitted and not yet returned."""
        return len(self._requests)

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        """Give groups out; returns at once."""
        shares: dict[int, list[GroupRequest]] = {}
        for request in requests:
            worker = min(range(len(self._load)), key=self._load.__getitem__)
            self._load[worker] += request.num_samples
            self._requests[request.group_id] = (worker, request)
            shares.setdefault(worker, []).append(request)
        for worker, share in shares.items():
            self._group.handles[worker].submit.remote(share)
            self._ensure_open(worker)

    def _ensure_open(self, worker: int) -> None:
        if all(owner != worker for owner, _ in self._open.values()):
            collect = self._group.handles[worker].collect.options(num_returns=2)
            metas, batch = collect.remote(HEARTBEAT_S)
            self._open[metas] = (worker, batch)

    def poll(self) -> list[RolloutGroup]:
        """Groups that finished, possibly none; waits for the first answer of any worker.

        Raises:
            WorkerError: when a worker died, or none answered in time.
        """
        if self._kept:
            kept, self._kept = self._kept, []
            return kept
        if not self._open:
            return []
        ready, _ = ray.wait(list(self._open), num_returns=1, timeout=self._silence_s)
        if not ready:
            raise WorkerError(
                f"rollout.collect: no worker answered in {self._silence_s:g} s with "
                f"{self.num_in_flight} groups in flight; an engine hangs"
            )
        finished: list[RolloutGroup] = []
        for ref in ready:
            worker, batch = self._open.pop(ref)
            try:
                metas: list[TrajectoryMeta] = ray.get(ref)
            except ray.exceptions.RayActorError as error:
                raise WorkerError(f"rollout engine {worker} died: {error}") from error
            finished.extend(self._split(metas, batch))
            if self._load[worker] > 0:
                self._ensure_open(worker)
        return finished

    def wait(self, group_ids: Sequence[str]) -> list[RolloutGroup]:
        """Exactly these groups, once all are finished; others are kept for the next `poll`."""
        wanted = set(group_ids)
        found: list[RolloutGroup] = []
        others: list[RolloutGroup] = []
        while len(found) < len(wanted):
            for group in self.poll():
                (found if group.group_id in wanted else others).append(group)
        self._kept.extend(others)
        return found

    def _split(self, metas: Sequence[TrajectoryMeta], batch: Any) -> list[RolloutGroup]:
        groups, start = [], 0
        while start < len(metas):
            group_id = metas[start].group_id
            worker, request = self._requests.pop(group_id)
            siblings = tuple(metas[start : start + request.num_samples])
            self._load[worker] -= request.num_samples
            groups.append(RolloutGroup(group_id=group_id, metas=siblings, batch=batch, start=start))
            start += request.num_samples
        return groups
