"""Start rollout engines, new or dead ones: load, publish, attest, and only then sample.

Ray constructs a dead worker anew under its old handle, on another node if need be. The worker then
holds the weights of the model folder, as an engine that joins the job does, so neither samples
before the learner's weights are attested in it. Runs in the driver. `maintain` takes every step
that is possible now and returns; the other engines go on sampling, and training goes on with them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container
from dataclasses import dataclass

from ray.exceptions import ActorUnavailableError

from orchestrator.fleet.health import Event, Health
from orchestrator.fleet.pool import EnginesLostError, RolloutPool
from workers.calls import bind
from workers.reward.worker import RewardWorker
from workers.rollout.worker import RolloutWorker
from workers.worker_group import Pending, WorkerError, WorkerGroup

CHECK_PLACES_EVERY_S = 2.0  # Ray is asked, once for all engines without a place
UNPUBLISHED = -1  # the label of weights that no learner gave


@dataclass(kw_only=True)
class _Start:
    """Start of an engine that loads, or whose process waits for a place."""

    pending: Pending[str]
    since: float
    unplaced: bool = False  # for longer than the limit, and a line was printed


class EngineRecovery:
    """Recovery of engines: starts them, and admits those that have started.

    Args:
        pool: the engines.
        workers: the processes of the engines, under the same numbers.
        rewards: the workers that engines call for scores.
        find_placed: returns the engines that have a place on the cluster.
        republish: gives the learner's present weights, attested, to all engines that run.
        start_s: longest wait for an engine to load.
        place_s: longest wait for a place before the run is told to go on without the engine.
        print_line: takes a line of news.
    """

    def __init__(
        self,
        pool: RolloutPool,
        workers: WorkerGroup[RolloutWorker],
        rewards: WorkerGroup[RewardWorker],
        *,
        find_placed: Callable[[], Container[int]],
        republish: Callable[[], object],
        start_s: float,
        place_s: float,
        print_line: Callable[[str], None],
    ) -> None:
        self._pool, self._workers, self._rewards = pool, workers, rewards
        self._find_placed, self._republish = find_placed, republish
        self._print_line = print_line
        self._start_s, self._place_s = start_s, place_s
        self._starting: dict[int, _Start] = {}
        self._places_checked = -math.inf

    def maintain(self) -> dict[int, str]:
        """Start dead engines, and admit all started engines with one publication.

        Returns:
            The reasons why engines could not start, by number. The caller removes such an engine,
            or reports its loss to the pool, after which the next call starts it again.

        Raises:
            EnginesLostError: none has a place.
        """
        for number, engine in self._pool.engines.items():
            if engine.health is Health.DEAD:
                words = engine.loss_reason.partition("\n")[0]
                self._print_line(f"rollout engine {number} is started again; it was lost: {words}")
                engine.apply(Event.RESTART)
                self.begin(number)
        self._check_places(time.monotonic())
        failed: dict[int, str] = {}
        for number in list(self._starting):
            if (why := self._check_start(number)) is not None:
                failed[number] = why
        self._admit()
        self._check_any_engine_left()
        return failed

    def _admit(self) -> None:
        engines = self._pool.engines
        started = [number for number, own in engines.items() if own.health is Health.STALE]
        if started:
            self._republish()
        for number in started:
            if engines[number].health.samples:
                self._print_line(f"rollout engine {number} has the learner's weights and samples")

    @property
    def unplaced(self) -> set[int]:
        """Engines whose process has had no place for longer than `place_s`."""
        return {number for number, start in self._starting.items() if start.unplaced}

    def begin(self, number: int) -> None:
        """Begin to load an engine, and return at once."""
        start = bind(RolloutWorker.start, UNPUBLISHED, self._rewards)
        pending = self._workers.start_one(number, start, timeout_s=self._start_s)
        since = self._starting[number].since if number in self._starting else time.monotonic()
        self._starting[number] = _Start(pending=pending, since=since)

    def forget(self, number: int) -> None:
        """Forget an engine that left the job."""
        self._starting.pop(number, None)

    def _check_start(self, number: int) -> str | None:
        """Check the start of an engine; return the reason of a failure, or None."""
        start = self._starting[number]
        seconds = time.monotonic() - start.since
        if not start.pending.ready():
            if start.unplaced or seconds <= self._start_s:
                return None
            del self._starting[number]
            return f"rollout.start, engine {number}: no answer in {self._start_s:g} s"
        try:
            start.pending.result()
        except WorkerError as error:
            if isinstance(error.__cause__, ActorUnavailableError) and seconds < self._start_s:
                self.begin(number)  # Ray has not yet constructed its process
                return None
            del self._starting[number]
            return str(error)
        del self._starting[number]
        self._pool.engines[number].apply(Event.STARTED)
        return None

    def _check_places(self, now: float) -> None:
        """Find out which of the engines that load for long have no place, or have one again."""
        late = {
            number: start
            for number, start in self._starting.items()
            if (start.unplaced or now - start.since > self._place_s) and not start.pending.ready()
        }
        if not late or now - self._places_checked < CHECK_PLACES_EVERY_S:
            return
        self._places_checked, placed = now, self._find_placed()
        for number, start in late.items():
            if number in placed and start.unplaced:
                start.unplaced, start.since = False, now
            elif number not in placed and not start.unplaced:
                start.unplaced = True
                self._print_line(
                    f"rollout engine {number} has no place on the cluster any more; "
                    f"{len(self._pool.sampling())} go on, and it comes back when there is room"
                )

    def _check_any_engine_left(self) -> None:
        """Raise EnginesLostError where every engine is without a place.

        While another engine samples, or may sample soon, a lost one is waited for.
        """
        if self.unplaced and self.unplaced == set(self._pool.engines):
            raise EnginesLostError(
                f"no rollout engine is left: none of {sorted(self.unplaced)} had a place on the "
                f"cluster for {self._place_s:g} s; mend the cluster and go on with resume=auto"
            )
