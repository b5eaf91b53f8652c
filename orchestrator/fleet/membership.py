"""Let rollout engines join and leave a running job, die and come back.

A job has a wanted number of engines: that of the configuration, up to `rollout.max_engines` where
the cluster has free resources, or the number of the last `ballast scale`. For each missing engine a
place is requested from Ray; a node that joins the cluster provides it, and an autoscaler adds a
node for it. An engine that joins starts like one that was restarted (`recovery.py`): it samples
when the learner's weights are attested in it. An engine that leaves is given no more prompts,
finishes the groups that it holds, and ends.

Runs in the driver: the pool calls `maintain` whenever the pool waits. `maintain` never waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from conf.schema import TrainConfig
from conf.tables.transports import TRANSPORTS, any_of
from orchestrator.fleet.endings import Endings
from orchestrator.fleet.fleet import Fleet
from orchestrator.fleet.health import Health
from orchestrator.fleet.launcher import EngineLauncher
from orchestrator.fleet.pool import EnginesLostError, RolloutPool
from orchestrator.fleet.recovery import CHECK_PLACES_EVERY_S, EngineRecovery
from orchestrator.fleet.scaling import ScaleRequest, ScaleRequests
from orchestrator.telemetry.counting import counted
from workers.rollout.worker import RolloutWorker
from workers.worker_group import WorkerGroup

MAINTAIN_EVERY_S = 0.25
MAX_DEATHS = 3  # of one engine without a finished group in between, before it is given up


@dataclass(frozen=True, kw_only=True)
class _PendingPlaces:
    """Places of the engines that a request adds, all of them or none."""

    places: Sequence[Any]
    deadline: float


class Membership:
    """Engines that belong to a job.

    Args:
        pool: gives the engines prompts.
        workers: the processes of the engines, under the same numbers.
        launcher: starts and places engines.
        recovery: loads and admits engines.
        requests: delivers requests for another number of engines.
        config: of the run.
        print_line: takes a line of news.
    """

    def __init__(
        self,
        pool: RolloutPool,
        workers: WorkerGroup[RolloutWorker],
        launcher: EngineLauncher,
        recovery: EngineRecovery,
        requests: ScaleRequests,
        config: TrainConfig,
        *,
        print_line: Callable[[str], None],
    ) -> None:
        self._pool, self._workers, self._launcher = pool, workers, launcher
        self._recovery, self._requests = recovery, requests
        self._config, self._print_line = config, print_line
        self._wanted = max(config.rollout.num_engines, config.rollout.max_engines or 0)
        self._next_number = config.rollout.num_engines
        self._request: ScaleRequest | None = None
        self._awaited: _PendingPlaces | None = None  # of the request
        self._requested: list[Any] = []  # from Ray, for missing engines
        self._joining: set[int] = set()  # not yet admitted for the first time
        self._leaving: dict[int, float] = {}  # number -> deadline for the groups that it holds
        self._endings = Endings(launcher)
        self._maintained = self._places_checked = -MAINTAIN_EVERY_S

    @property
    def staying(self) -> list[int]:
        """Engines that are not asked to leave, of any health."""
        return [number for number in self._pool.engines if number not in self._leaving]

    def maintain(self) -> None:
        """Take every step that is possible now for engines that join, leave or died.

        Raises:
            EnginesLostError: fewer are left than `rollout.min_engines`.
        """
        now = time.monotonic()
        if now - self._maintained < MAINTAIN_EVERY_S:
            return
        self._maintained = now
        self._end_leaving(now)
        for number in self._joining & (self._dead() | self._recovery.unplaced):
            self._drop_joining(
                number, self._pool.engines[number].loss_reason or "it lost its place"
            )
        for number in self._dead():
            if self._pool.engines[number].deaths > MAX_DEATHS:
                self._give_up(number)
        for number, why in self._recovery.maintain().items():
            if number in self._joining:
                self._drop_joining(number, why)
            else:
                self._pool.kill(number, why)  # it may be loading still
        self._joining -= set(self._pool.sampling())
        if self._request is None and (request := self._requests.next()) is not None:
            self._begin(request, now)
        if now - self._places_checked >= CHECK_PLACES_EVERY_S:
            self._places_checked = now
            self._check_places(now)
        self._conclude()

    def _dead(self) -> set[int]:
        engines = self._pool.engines
        return {number for number, own in engines.items() if own.health is Health.DEAD}

    # ---- requests ----

    def _begin(self, request: ScaleRequest, now: float) -> None:
        reason = self._reason_to_refuse(request)
        if reason is not None:
            self._print_line(f"asked for {counted(request.engines, 'engine')}, refused: {reason}")
            self._requests.answer(request, "refused", reason)
            return
        self._withdraw()
        self._request = request
        have, more = len(self.staying), request.engines - len(self.staying)
        if more > 0:
            timeouts = self._config.cluster.timeouts
            limit_s = timeouts.start_s if self._config.cluster.autoscaled else timeouts.place_s
            places = [self._launcher.request_place() for _ in range(more)]
            self._awaited = _PendingPlaces(places=places, deadline=now + limit_s)
            self._places_checked = now - CHECK_PLACES_EVERY_S
        else:
            self._wanted = request.engines
            for number in self._choose_leaving(-more):
                self._release(number, now)
        change = f"engines: {have} -> {request.engines}"
        self._requests.answer(request, "working", f"{change}; the run goes on")

    def _reason_to_refuse(self, request: ScaleRequest) -> str | None:
        """Return the reason why a request is impossible from the start, or None."""
        config, more = self._config, request.engines - len(self.staying)
        if config.cluster.colocated:
            return (
                f"cluster={config.cluster.name} has one engine on the GPU of each learner rank, "
                "and they take turns; choose a cluster= with cluster.colocated=false"
            )
        if request.engines < 1:
            return f"{counted(request.engines, 'engine')}: a run needs at least one"
        transport = self._launcher.transport
        if more > 0 and not transport.may_grow:
            growing = any_of(row for row in TRANSPORTS if row.may_grow)
            return f"rollout.transport={transport.name} {transport.limit}; choose {growing}"
        if more > 0 and not config.cluster.autoscaled:
            free = self._launcher.free_places()
            if free.count < more:
                return free.describe_shortage(more)
        return None

    def _conclude(self) -> None:
        """Answer the request once all its engines have joined or left."""
        unfinished = self._awaited or self._joining or self._leaving or self._endings
        if self._request is None or unfinished:
            return
        count, asked = len(self.staying), self._request.engines
        message = f"{counted(count, 'engine')}, {len(self._pool.sampling())} of them sampling"
        self._requests.answer(self._request, "done" if count == asked else "refused", message)
        self._print_line(f"asked for {counted(asked, 'engine')}: {message}")
        self._request = None

    def _refuse(self, why: str) -> None:
        """Answer the request with a refusal; engines that it has added or removed stay so."""
        if self._request is not None:
            self._requests.answer(self._request, "refused", why)
            self._request = None
        self._print_line(f"{why}; going on with {counted(len(self.staying), 'engine')}")

    # ---- joining ----

    def _check_places(self, now: float) -> None:
        if self._awaited is not None:
            self._fill(self._awaited, now)
        if self._request is not None:
            return
        while len(self.staying) + len(self._requested) < self._wanted:
            self._requested.append(self._launcher.request_place())
        reserved = self._launcher.find_reserved(self._requested)
        self._requested = [place for place in self._requested if place not in reserved]
        for place in reserved:
            self._join(place)

    def _fill(self, awaited: _PendingPlaces, now: float) -> None:
        assert self._request is not None
        if len(self._launcher.find_reserved(awaited.places)) == len(awaited.places):
            self._wanted, self._awaited = self._request.engines, None
            for place in awaited.places:
                self._join(place)
        elif now > awaited.deadline:
            self._awaited = None
            for place in awaited.places:
                self._launcher.release_place(place)
            self._refuse(self._launcher.free_places().describe_shortage(len(awaited.places)))

    def _join(self, place: Any) -> None:
        number, self._next_number = self._next_number, self._next_number + 1
        self._workers.add(number, self._launcher.launch(number, place))
        self._pool.add(number)
        self._joining.add(number)
        self._recovery.begin(number)
        self._print_line(f"rollout engine {number} joins")

    def _drop_joining(self, number: int, why: str) -> None:
        """Remove an engine that joins and can't start; the job goes on without it."""
        self._joining.discard(number)
        self._end(number)
        self._wanted = len(self.staying)
        self._refuse(f"rollout engine {number} could not join: {why}")

    def _withdraw(self) -> None:
        for place in self._requested:
            self._launcher.release_place(place)
        self._requested = []

    # ---- leaving ----

    def _choose_leaving(self, count: int) -> list[int]:
        """Return the engines that shall leave: first those that sample nothing, then the newest."""
        engines = self._pool.engines
        return sorted(self.staying, key=lambda n: (engines[n].health.samples, -n))[:count]

    def _release(self, number: int, now: float) -> None:
        self._joining.discard(number)
        if self._pool.engines[number].health.samples:
            self._pool.retire(number)
            self._leaving[number] = now + self._config.cluster.timeouts.request_s
        else:
            self._end(number)

    def _give_up(self, number: int) -> None:
        """Go on without an engine that ends again and again: its GPU may be broken.

        Raises:
            EnginesLostError: too few are left.
        """
        report, least = self._pool.loss_report(number), self._config.rollout.min_engines
        left = len(self.staying) - 1
        if left < least:
            raise EnginesLostError(
                f"{report}; without it {counted(left, 'engine')} would be left, fewer than "
                f"rollout.min_engines={least}"
            )
        self._end(number)
        self._wanted -= 1  # its place in the run's reservation stays empty
        self._print_line(f"{report}; going on with {counted(left, 'engine')}")

    def _end_leaving(self, now: float) -> None:
        for number, deadline in list(self._leaving.items()):
            engine = self._pool.engines[number]
            if engine.health is not Health.LEAVING or self._pool.idle(number) or now > deadline:
                del self._leaving[number]
                self._end(number)
        self._endings.finish()

    def _end(self, number: int) -> None:
        self._print_line(f"rollout engine {number} leaves")
        self._pool.remove(number)
        self._recovery.forget(number)
        self._endings.begin(number, self._workers.remove(number))


def membership_of(
    fleet: Fleet,
    republish: Callable[[], object],
    requests: ScaleRequests,
    config: TrainConfig,
    *,
    print_line: Callable[[str], None],
) -> Membership:
    """Compose the membership of a run; `republish` gives engines the learner's present weights."""
    timeouts = config.cluster.timeouts
    recovery = EngineRecovery(
        fleet.pool,
        fleet.workers,
        fleet.rewards,
        find_placed=fleet.launcher.find_placed,
        republish=republish,
        start_s=timeouts.start_s,
        place_s=timeouts.place_s,
        print_line=print_line,
    )
    return Membership(
        fleet.pool, fleet.workers, fleet.launcher, recovery, requests, config, print_line=print_line
    )
