"""Load of an engine: the numbers of vLLM's scheduler after every step, kept until they are read.

vLLM hands its statistics to loggers once per step; this one keeps the few numbers that show whether
an engine holds too many requests. Runs in the rollout worker's process, and is imported only where
vLLM is. Prints nothing and limits nothing: the driver does.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from workers.data.requests import EngineLoad


class SchedulerWatch(PrometheusStatLogger):
    """Recorder of the load since the last `report`.

    It stands where vLLM would otherwise put its Prometheus exporter, whose histograms cost more per
    step than a small model; of that class it uses nothing.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        del vllm_config, engine_indexes
        self._running = self._last_waiting = 0
        self._expected = 0  # preemptions to come that an update causes
        self._arriving = False  # the first of them has come
        self._reset()

    def _reset(self) -> None:
        self._steps = self._preemptions = 0
        self._kv_usage = 0.0
        self._waiting: int | None = None

    def report(self) -> EngineLoad:
        """Return the load since the last call."""
        load = EngineLoad(
            steps=self._steps,
            kv_usage=self._kv_usage,
            waiting=self._waiting or 0,
            preemptions=self._preemptions,
        )
        self._reset()
        return load

    def expect_preemptions(self) -> None:
        """Leave the preemptions of an update out of the load.

        An update of the weights takes the cache from all that runs, which is no sign of a full one.
        """
        self._expected, self._arriving = self._running, False

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Add the statistics of one step; vLLM calls this after every step."""
        del args, kwargs
        if iteration_stats is not None:
            expected = min(iteration_stats.num_preempted_reqs, self._expected)
            self._expected -= expected
            self._arriving = self._arriving or expected > 0
            self._preemptions += iteration_stats.num_preempted_reqs - expected
        if scheduler_stats is not None:
            self._record_step(scheduler_stats)

    def _record_step(self, stats: SchedulerStats) -> None:
        waiting = stats.num_waiting_reqs
        if self._arriving and waiting == self._last_waiting == 0:
            self._expected = 0  # what has not come was aborted
        self._running, self._last_waiting = stats.num_running_reqs, waiting
        self._steps += 1
        self._kv_usage = max(self._kv_usage, stats.kv_cache_usage)
        if self._expected:
            waiting = 0  # for its keys and values to be computed again
        self._waiting = waiting if self._waiting is None else min(self._waiting, waiting)

    def log_engine_initialized(self) -> None:
        """Print nothing."""

    def record_admission_rejection(self, reason: str) -> None:
        """Record nothing: nothing is rejected here."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Record nothing: nothing is exported."""
