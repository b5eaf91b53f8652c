"""Bringing rollout engines to life: load, publish, attest, and only then sample.

Ray constructs a dead worker anew under its old handle, on another node if need be. What it holds
then are the weights of the model folder, as in an engine that joins the job, so neither samples
anything before the learner's are attested in it. `maintain` does what can be done at this moment
and returns; the other engines go on sampling, and training goes on with them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ray.exceptions import ActorUnavailableError

from orchestrator.fleet.health import Event, Health
from orchestrator.fleet.pool import EnginesLostError, RolloutPool
from workers.calls import bind
from workers.reward.worker import RewardWorker
from workers.rollout.worker import RolloutWorker
from workers.worker_group import Pending, WorkerError, WorkerGroup

UNPUBLISHED = -1  # the label of weights that no learner gave


@dataclass(kw_only=True)
class _Start:
    """An engine that loads, or whose process waits for a place."""

    pending: Pending[str]
    since: float
    unplaced: bool = False  # and everybody was told


class EngineRecovery:
    """Starts engines and admits those that have started.

    Args:
        pool: the engines.
        workers: their processes, under the same numbers.
        rewards: the workers that engines call for scores.
        stands: whether an engine has a place on the cluster.
        republish: gives the learner's present weights, attested, to all engines that run.
        start_s: longest wait for an engine to load.
        place_s: longest wait for a place before the run is told to go on without the engine.
        say: takes a line of news.
    """

    def __init__(
        self,
        pool: RolloutPool,
        workers: WorkerGroup[RolloutWorker],
        rewards: WorkerGroup[RewardWorker],
        *,
        stands: Callable[[int], bool],
        republish: Callable[[], object],
        start_s: float,
        place_s: float,
        print_line: Callable[[str], None],
    ) -> None:
        self._pool, self._workers, self._rewards = pool, workers, rewards
        self._stands, self._republish, self._print_line = stands, republish, say
        self._start_s, self._place_s = start_s, place_s
        self._starting: dict[int, _Start] = {}

    def maintain(self) -> dict[int, str]:
        """Start what is dead, and admit what has started, all of it with one publication.

        Returns:
            Why engines could not start, by number; they are dead until somebody else is asked.

        Raises:
            EnginesLostError: none has a place.
        """
        for number, engine in self._pool.engines.items():
            if engine.health is Health.DEAD:
                words = engine.loss_reason.partition("\n")[0]
                self._print_line(f"rollout engine {number} is started again; it was lost: {words}")
                engine.apply(Event.RESTART)
                self.begin(number)
        failed: dict[int, str] = {}
        for number in list(self._starting):
            if (why := self._look(number)) is not None:
                failed[number] = why
        self._admit()
        self._judge()
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
        """Engines whose process has had no place for longer than they are waited for."""
        return {number for number, start in self._starting.items() if start.unplaced}

    def begin(self, number: int) -> None:
        """Let an engine load; returns at once."""
        start = bind(RolloutWorker.start, UNPUBLISHED, self._rewards)
        pending = self._workers.start_one(number, start, timeout_s=self._start_s)
        since = self._starting[number].since if number in self._starting else time.monotonic()
        self._starting[number] = _Start(pending=pending, since=since)

    def forget(self, number: int) -> None:
        """The engine is gone for good."""
        self._starting.pop(number, None)

    def _look(self, number: int) -> str | None:
        """Take note of how far an engine is; why it failed, if it did."""
        start = self._starting[number]
        seconds = time.monotonic() - start.since
        if not start.pending.ready():
            return self._wait_on(number, start, seconds)
        try:
            start.pending.result()
        except WorkerError as error:
            if isinstance(error.__cause__, ActorUnavailableError) and seconds < self._start_s:
                self.begin(number)  # Ray has not yet constructed its process
                return None
            del self._starting[number]
            return str(error)
        del self._starting[number]
        self._pool.engines[number].see(Event.STARTED)
        return None

    def _wait_on(self, number: int, start: _Start, seconds: float) -> str | None:
        if start.unplaced or seconds > self._place_s:
            stands = self._stands(number)
            if stands and start.unplaced:
                start.unplaced, start.since = False, time.monotonic()
            elif not stands and not start.unplaced:
                start.unplaced = True
                self._print_line(
                    f"rollout engine {number} has no place on the cluster any more; "
                    f"{len(self._pool.sampling())} go on, and it comes back when there is room"
                )
        if start.unplaced or seconds <= self._start_s:
            return None
        del self._starting[number]
        return f"rollout.start, engine {number}: no answer in {self._start_s:g} s"

    def _judge(self) -> None:
        """Wait for a lost engine as long as another samples, or one may soon."""
        if self.unplaced and self.unplaced == set(self._pool.engines):
            raise EnginesLostError(
                f"no rollout engine is left: none of {sorted(self.unplaced)} had a place on the "
                f"cluster for {self._place_s:g} s; mend the cluster and go on with resume=auto"
            )
