"""Stand in for publications in a run where nothing learns: label weights and admit engines.

Runs in the driver. Engines sample with what they loaded; nothing is sent and nothing is attested.
"""

from __future__ import annotations

from orchestrator.fleet.fleet import Fleet
from orchestrator.fleet.health import Health
from workers.calls import bind
from workers.rollout.worker import RolloutWorker
from workers.worker_group import divide


class FixedWeights:
    """`Publishing` where nothing learns: engines sample with what they loaded.

    Args:
        fleet: the rollout side of the run.
        timeout_s: longest that the engines may take to label their weights.
    """

    def __init__(self, fleet: Fleet, *, timeout_s: float) -> None:
        self._fleet, self._timeout_s, self._version = fleet, timeout_s, 0

    def begin(self, version: int) -> dict[str, float]:
        """Take note of the label that the engines were started with."""
        self._version = version
        return {}

    def publish(self, version: int, *, stepped: bool) -> dict[str, float]:
        """Refuse: there are no other weights to publish."""
        raise AssertionError(f"version {version} (stepped={stepped}) of weights that never change")

    def republish(self) -> dict[str, float]:
        """Label the weights of engines that started since, and admit these engines."""
        pool = self._fleet.pool
        started = [number for number, own in pool.engines.items() if own.health is Health.STALE]
        label = bind(RolloutWorker.set_version, self._version)
        labels = self._fleet.workers.only(started).start(label, timeout_s=self._timeout_s)
        answers, failures = divide(labels.outcomes())
        for number in answers:
            pool.admit(number)
        for number, why in failures.items():
            pool.kill(number, str(why))
        return {}
