"""What vLLM's scheduler says of every step, kept until somebody asks.

vLLM hands its statistics to loggers once per step; this one keeps the few numbers that tell whether
an engine holds too many requests. It prints nothing and is imported only where vLLM is.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from workers.data.requests import EngineLoad


class SchedulerWatch(PrometheusStatLogger):
    """Load since the last `report`.

    It stands where vLLM would otherwise put its Prometheus exporter, whose histograms cost more per
    step than a small model; of that class it uses nothing.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        del vllm_config, engine_indexes
        self._running = self._last_waiting = 0
        self._excused = 0  # preemptions to come that an update ordered
        self._excusing = False  # the first of them has come
        self._forget()

    def _forget(self) -> None:
        self._steps = self._preemptions = 0
        self._kv_usage = 0.0
        self._waiting: int | None = None

    def report(self) -> EngineLoad:
        """What was seen since the last call."""
        load = EngineLoad(
            steps=self._steps,
            kv_usage=self._kv_usage,
            waiting=self._waiting or 0,
            preemptions=self._preemptions,
        )
        self._forget()
        return load

    def excuse(self) -> None:
        """An update of the weights takes the cache from all that runs: no sign of a full one."""
        self._excused, self._excusing = self._running, False

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Called by vLLM after every step."""
        del args, kwargs
        if iteration_stats is not None:
            excused = min(iteration_stats.num_preempted_reqs, self._excused)
            self._excused -= excused
            self._excusing = self._excusing or excused > 0
            self._preemptions += iteration_stats.num_preempted_reqs - excused
        if scheduler_stats is not None:
            self._record_step(scheduler_stats)

    def _record_step(self, stats: SchedulerStats) -> None:
        waiting = stats.num_waiting_reqs
        if self._excusing and waiting == self._last_waiting == 0:
            self._excused = 0  # what has not come was aborted
        self._running, self._last_waiting = stats.num_running_reqs, waiting
        self._steps += 1
        self._kv_usage = max(self._kv_usage, stats.kv_cache_usage)
        if self._excused:
            waiting = 0  # for its keys and values to be computed again
        self._waiting = waiting if self._waiting is None else min(self._waiting, waiting)

    def log_engine_initialized(self) -> None:
        """Nothing to print."""

    def record_admission_rejection(self, reason: str) -> None:
        """Nothing is rejected here."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Nothing is exported."""
