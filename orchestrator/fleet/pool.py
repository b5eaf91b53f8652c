"""Submit groups to the rollout workers and collect finished groups, without touching a token.

`submit` takes groups, which `routing` divides among the workers; `poll` returns groups as they
finish, in any order. A worker that holds groups has one `collect` call open, which is also its
heartbeat and reports the load of its engine. Runs in the driver. The trajectories stay in the
object store; a finished group is its metadata and the place of its rows.

A worker that dies, or whose heartbeat stops, loses its unfinished groups to the others, which
sample these groups again with the same seeds. A dead worker and an engine that joins need the
learner's weights, which the pool doesn't have: the owner of the pool sets `maintain`, which every
waiting `poll` calls first.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import ray.exceptions

from orchestrator.fleet.concurrency import Concurrency
from orchestrator.fleet.engine_record import EngineRecord
from orchestrator.fleet.health import Event, Health
from orchestrator.fleet.routing import Routing
from orchestrator.telemetry.counting import counted
from workers.calls import bind
from workers.data.requests import Collected, EngineLoad, GroupRequest
from workers.data.trajectory import RolloutGroup, TrajectoryMeta
from workers.failures import worker_error
from workers.rollout.worker import RolloutWorker
from workers.worker_group import WorkerError, WorkerGroup, is_death

HEARTBEAT_S = 5.0  # longest that a worker may hold an open `collect` without a finished group
HEARTBEATS_PER_S = 20.0  # of all workers: each costs the driver about a millisecond
CHECK_HEARTBEATS_EVERY_S = 1.0
NO_ENGINE_WAIT_S = 0.2  # how long a poll waits while no engine samples


class EnginesLostError(WorkerError):
    """Too few engines are left to sample; the run itself is whole."""


class RolloutPool:
    """Pool of all rollout engines.

    `engines` holds a record of each engine, by its number; `maintain`, which the owner sets, brings
    dead engines back and lets engines join and leave, and returns at once.

    Args:
        group: the workers.
        silence_s: a worker without an answer for this long, in seconds, is killed.
        together: groups submitted at once are sampled in one batch, so that equal submissions give
            equal bits; for schedules in which nothing else is in flight then.
        concurrency: where the limit of every engine starts; None sets none, as `together` needs.
        keep: begins to copy a batch to where it outlives its engine's node; returns references to
            the copy and to its end. None leaves batches where they are.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        group: WorkerGroup[RolloutWorker],
        *,
        silence_s: float,
        together: bool,
        concurrency: Concurrency | None = None,
        keep: Callable[[Any], tuple[Any, Awaitable[None]]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert not (together and concurrency), "one batch can't be held back in parts"
        self._group, self._together, self._clock = group, together, clock
        self._silence_s, self._keep = silence_s, keep
        self.engines = {number: EngineRecord(answered=clock()) for number in group.ranks}
        self.maintain: Callable[[], None] = self._raise_if_one_died
        self._heartbeats_checked = clock()  # when silence was last looked at
        self._fault: WorkerError | None = None  # why no more can be sampled
        self._lost = self._resampled = self._preemptions = 0
        self._routing = Routing(concurrency=concurrency)
        # reference to metadata -> engine, reference to the batch
        self._open: dict[Awaitable[Collected], tuple[int, Any]] = {}
        self._kept: list[RolloutGroup] = []  # finished while somebody waited for other groups
        self._wanted_aside: set[str] = set()  # groups that `poll` does not return
        self._aside: list[RolloutGroup] = []
        # reference to the end of a copy -> engine, metadata, reference to the copied batch, begin
        self._copying: dict[Awaitable[None], tuple[int, Sequence[TrajectoryMeta], Any, float]] = {}

    @property
    def num_in_flight(self) -> int:
        """Groups submitted and not yet returned."""
        return self._routing.num_groups

    @property
    def heartbeat_s(self) -> float:
        """Longest wait for a heartbeat in seconds: longer where there are many workers."""
        shared = len(self._group) / HEARTBEATS_PER_S
        return max(HEARTBEAT_S, min(shared, self._silence_s / 4))

    def metrics(self) -> dict[str, float]:
        """Return load and health of the engines, and counts since the start of the job."""
        loads = [engine.load for engine in self.engines.values()]
        limits = [limit for n in self.sampling() if (limit := self._routing.limit(n)) is not None]
        return {
            **({"rollout/concurrency": float(sum(limits))} if limits else {}),
            "rollout/kv_usage": max((load.kv_usage for load in loads), default=0.0),
            "rollout/waiting": float(sum(load.waiting for load in loads)),
            "rollout/preemptions": float(self._preemptions),
            "rollout/engines": float(len(self.engines)),
            "rollout/engines_healthy": float(len(self.sampling())),
            "rollout/engines_lost": float(self._lost),
            "rollout/groups_resampled": float(self._resampled),
        }

    def sampling(self) -> list[int]:
        """Return the numbers of the engines that may be given prompts."""
        return [number for number, engine in self.engines.items() if engine.health.samples]

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        """Queue groups, send as many as the engines may hold, and return at once."""
        self._routing.add(requests)
        self._assign_groups(self.sampling())

    def abort(self, group_ids: Sequence[str]) -> None:
        """Abort groups, which frees their slots; `poll` never returns them."""
        for number, held in self._routing.withdraw(group_ids).items():
            self._group.send(number, bind(RolloutWorker.abort, held))
            if self.engines[number].health.samples:
                self._assign_groups([number])

    def _assign_groups(self, numbers: Sequence[int]) -> None:
        for number, share in self._routing.assign(numbers).items():
            self._group.send(number, bind(RolloutWorker.submit, share, self._together))
            self._ensure_open(number)

    def _ensure_open(self, number: int) -> None:
        engine = self.engines[number]
        if not engine.collecting:
            collect = bind(RolloutWorker.collect, self.heartbeat_s)
            metas, batch = self._group.send_pair(number, collect)
            self._open[metas] = (number, batch)
            engine.collecting, engine.answered = True, self._clock()

    def poll(self, *, wait: bool = True) -> list[RolloutGroup]:
        """Return the groups that finished, possibly none.

        Waits `HEARTBEAT_S` at most; without `wait`, not at all.

        Raises:
            WorkerError: when a worker keeps dying, or sampling fails for another reason; only where
                it waits, so that what is finished can be saved before the run ends.
        """
        if self._kept:
            kept, self._kept = self._kept, []
            return kept
        if wait and self._fault is not None:
            raise self._fault
        if wait:
            self.maintain()
        if not self._open and not self._copying:
            if wait and self.num_in_flight:
                time.sleep(NO_ENGINE_WAIT_S)
            return []
        waiting: list[Awaitable[Any]] = [*self._open, *self._copying]
        ready = self._group.ready(waiting, timeout_s=HEARTBEAT_S if wait else 0.0)
        finished: list[RolloutGroup] = []
        for ref in ready:
            finished += self._copied(ref) if ref in self._copying else self._take_answer(ref)
        self._check_heartbeats()
        self._aside += [group for group in finished if group.group_id in self._wanted_aside]
        return [group for group in finished if group.group_id not in self._wanted_aside]

    def set_aside(self, group_ids: Sequence[str]) -> None:
        """Keep these groups for `take_aside` when they finish; `poll` returns the others."""
        self._wanted_aside |= set(group_ids)

    def take_aside(self) -> list[RolloutGroup]:
        """Return the groups set aside that have finished since the last call."""
        taken, self._aside = self._aside, []
        self._wanted_aside -= {group.group_id for group in taken}
        return taken

    def _take_answer(self, ref: Awaitable[Collected]) -> list[RolloutGroup]:
        number, batch = self._open.pop(ref)
        engine = self.engines[number]
        engine.collecting = False
        try:
            collected = self._group.answer(ref)
        except ray.exceptions.RayError as error:
            if not is_death(error):
                self._fault = worker_error(f"rollout.collect, engine {number}", error)
                self._fault.__cause__ = error
                return []
            # Of some errors Ray does not know, and of others it does not say, that it has ended.
            ended = isinstance(error, (ray.exceptions.ActorDiedError, ray.exceptions.RayTaskError))
            end = self.lose if ended else self.kill
            end(number, str(getattr(error, "cause", None) or error))
            return []
        engine.answered = self._clock()
        engine.apply(Event.ANSWERED)
        engine.load = collected.load
        self._preemptions += collected.load.preemptions
        if collected.metas:
            engine.deaths = 0
        self._routing.observe(number, collected.load)
        groups = []
        if self._keep is None or not collected.metas:
            groups = self._split(collected.metas, batch)
        else:
            copy, copied = self._keep(batch)
            self._copying[copied] = (number, collected.metas, copy, self._clock())
        if engine.health.samples:
            self._assign_groups([number])
        if self._routing.outstanding(number):
            self._ensure_open(number)
        return groups

    def _copied(self, ref: Awaitable[None]) -> list[RolloutGroup]:
        """Return groups that are where they stay; sample those again that were lost before."""
        number, metas, copy, _ = self._copying.pop(ref)
        try:
            self._group.answer(ref)
        except ray.exceptions.RayError:
            self._sample_again(number, metas)
            return []
        return self._split(metas, copy)

    def _sample_again(self, number: int, metas: Sequence[TrajectoryMeta]) -> None:
        """Let engines sample groups again whose batch is lost."""
        self._resampled += self._routing.requeue_groups(number, {meta.group_id for meta in metas})
        self._assign_groups(self.sampling())

    def _check_heartbeats(self) -> None:
        if self._clock() - self._heartbeats_checked < CHECK_HEARTBEATS_EVERY_S:
            return
        self._heartbeats_checked = now = self._clock()
        for ref, (number, metas, _, began) in list(self._copying.items()):
            if now - began > self._silence_s:  # the process that copies hangs
                del self._copying[ref]
                self._sample_again(number, metas)
        for number, _ in list(self._open.values()):
            engine = self.engines[number]
            silence_s = self._clock() - engine.answered
            if silence_s > self._silence_s:
                self.kill(number, f"no heartbeat for {silence_s:.0f} s")
            elif silence_s > 2 * self.heartbeat_s:
                engine.apply(Event.SILENT)

    def lose(self, number: int, why: str) -> None:
        """Record that an engine died; other engines sample its unfinished groups again."""
        engine = self.engines[number]
        engine.apply(Event.DIED)
        engine.loss_reason = why
        self._lost += 1
        engine.deaths += 1
        self._resample_groups(number)

    def kill(self, number: int, why: str) -> None:
        """End the process of an engine, which may hang or live on, and lose the engine.

        Ray constructs the process anew; nothing else of it is waited for.
        """
        self._group.kill(number)
        self.lose(number, why)

    def loss_report(self, number: int) -> str:
        """Describe the deaths of an engine since its last finished group, with the last reason."""
        engine = self.engines[number]
        return (
            f"rollout engine {number} died {counted(engine.deaths, 'time')} without finishing "
            f"a group, the last time because: {engine.loss_reason}"
        )

    def _resample_groups(self, number: int) -> None:
        """Let other engines sample the groups that an engine holds."""
        engine = self.engines[number]
        self._open = {ref: own for ref, own in self._open.items() if own[0] != number}
        engine.collecting, engine.load = False, EngineLoad()
        self._resampled += self._routing.requeue(number)
        self._assign_groups(self.sampling())

    def admit(self, number: int) -> None:
        """Let an engine sample again, once its weights are attested."""
        self.engines[number].apply(Event.ATTESTED)
        self._assign_groups(self.sampling())

    def add(self, number: int) -> None:
        """Add a record of one more engine of the group, which is not yet started and admitted."""
        joining = EngineRecord(answered=self._clock(), health=Health.RESTARTING)
        self.engines[number] = joining

    def retire(self, number: int) -> None:
        """Stop giving an engine prompts; the engine finishes the groups that it holds."""
        self.engines[number].apply(Event.LEAVE)

    def idle(self, number: int) -> bool:
        """Return True if an engine holds no group."""
        return self._routing.outstanding(number) == 0

    def remove(self, number: int) -> None:
        """Forget an engine that is given no prompts; what it holds is sampled again elsewhere."""
        self._resample_groups(number)
        del self.engines[number]

    def _raise_if_one_died(self) -> None:
        for number, engine in self.engines.items():
            if engine.health is Health.DEAD:
                raise EnginesLostError(f"{self.loss_report(number)}; nobody is there to restart it")

    def wait(self, group_ids: Sequence[str]) -> list[RolloutGroup]:
        """Wait for exactly these groups; keep others that finish for the next `poll`."""
        wanted = set(group_ids)
        self._wanted_aside -= wanted
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
            group_id, end = metas[start].group_id, start
            while end < len(metas) and metas[end].group_id == group_id:
                end += 1
            if self._routing.finish(group_id):
                siblings = tuple(metas[start:end])
                groups.append(
                    RolloutGroup(group_id=group_id, metas=siblings, batch=batch, start=start)
                )
            start = end
        return groups
