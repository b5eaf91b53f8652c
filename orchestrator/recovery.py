"""Bringing dead rollout engines back: construct, load, publish, attest, and only then sample.

Ray constructs a dead worker anew under its old handle, on another node if need be. What it holds
then are the weights of the model folder, so it samples nothing before the learner's are attested
in it. `tend` does what can be done at this moment and returns; the pool calls it while it waits, so
the other engines go on sampling meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ray.exceptions import ActorUnavailableError

from orchestrator.cluster import Roles
from workers.group import Pending, WorkerError
from workers.health import Event, Health

UNPUBLISHED = -1  # the label of weights that no learner gave
RETRY_S = 0.5


class EngineRecovery:
    """Restarts the engines of a pool.

    Args:
        roles: the engines, and the reward workers that they call.
        republish: connects the learner to all engines anew and publishes its present weights,
            attested.
        start_s: longest wait for an engine to load.
    """

    def __init__(
        self,
        roles: Roles,
        republish: Callable[[], object],
        *,
        start_s: float,
    ) -> None:
        self._roles, self._pool = roles, roles.rollouts
        self._republish, self._start_s = republish, start_s
        self._starting: dict[int, Pending] = {}
        self._since: dict[int, float] = {}  # when a restart began

    def tend(self, wait: bool) -> None:
        """Start what is dead; admit what has started, all of it with one publication.

        Args:
            wait: return when every engine samples. Without it, wait only where none is left.
        """
        engines = self._pool.engines
        for worker, engine in engines.items():
            if engine.health is Health.DEAD:
                engine.see(Event.RESTART)
                self._since[worker] = time.monotonic()
                self._start(worker)
        wait = wait or not self._pool.sampling()
        for worker, pending in list(self._starting.items()):
            if wait or pending.ready():
                self._finish(worker, self._starting.pop(worker))
        started = [worker for worker, own in engines.items() if own.health is Health.STALE]
        if started:
            self._republish()
        for worker in started:
            if engines[worker].health is Health.STALE:  # not lost again while it was published to
                self._pool.admit(worker)
        if wait and len(self._pool.sampling()) < len(engines):
            self.tend(wait)  # the pool gives up on an engine that keeps dying

    def _start(self, worker: int) -> None:
        self._starting[worker] = self._roles.rollout_workers.start_one(
            worker, "start", UNPUBLISHED, self._roles.rewards.handles, timeout_s=self._start_s
        )

    def _finish(self, worker: int, pending: Pending) -> None:
        try:
            pending.result()
        except WorkerError as error:
            seconds = time.monotonic() - self._since[worker]
            if isinstance(error.__cause__, ActorUnavailableError) and seconds < self._start_s:
                time.sleep(RETRY_S)  # Ray has not yet constructed its process
                self._start(worker)
            else:
                self._pool.lose(worker, str(error))
            return
        self._pool.engines[worker].see(Event.STARTED)
