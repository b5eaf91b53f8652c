"""Keep what vLLM's scheduler reports of every step until the load of the engine is asked for.

vLLM hands its statistics to loggers once per step; this logger keeps the few numbers that tell
whether an engine holds too many requests. It runs in the process that holds `AsyncLLM`, prints
nothing and is imported only where vLLM is.

    step   running  preempted   meaning
    41     3        0           three requests run
           a pause for new weights: vLLM clears the cache and preempts what runs, these three
    42     3        3           `reset` is set; three preemptions are excused, none is counted
    43     3        1           a preemption for lack of blocks: it is counted
"""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from workers.data.requests import EngineLoad


class SchedulerWatch(PrometheusStatLogger):
    """Recorder of the load since the last `report`, and of where the engine is.

    The class takes the place of vLLM's Prometheus exporter, whose histograms cost more per step
    than a small model; of its base class it uses nothing.

    A reset of the cache, which a publication orders, preempts every running request. These
    preemptions are excused by the statistics alone, because reports reach this process later than
    the scheduler made them: the first report after a reset says so, the report before it holds the
    number of requests that ran, and each of them tells its preemption with its next token.

    Attributes:
        num_steps: since the start of the engine.
        num_waiting: requests that waited inside the engine at the last step.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        del vllm_config, engine_indexes
        self.num_steps = self.num_waiting = 0
        self._running = 0  # after the last step
        self._reset_from = 0  # requests that ran at the last reset
        self._excused = 0  # preemptions by a reset that are still to be told
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

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Take the statistics of one step; vLLM calls it in the order of the steps."""
        del args, kwargs
        if scheduler_stats is not None and scheduler_stats.prefix_cache_stats.reset:
            # What an earlier reset preempted goes before what arrived since: see `_all_told`.
            self._reset_from = max(self._running, self._reset_from if self._excused else 0)
            self._excused += self._running
        if iteration_stats is not None:
            excused = min(iteration_stats.num_preempted_reqs, self._excused)
            self._excused -= excused
            self._preemptions += iteration_stats.num_preempted_reqs - excused
        if scheduler_stats is not None:
            self._record_step(scheduler_stats, iteration_stats)

    def _record_step(self, stats: SchedulerStats, told: IterationStats | None) -> None:
        if self._all_told(stats, told):
            self._excused = 0  # requests that were aborted tell nothing
        self._running, self.num_waiting = stats.num_running_reqs, stats.num_waiting_reqs
        self.num_steps += 1
        self._steps += 1
        self._kv_usage = max(self._kv_usage, stats.kv_cache_usage)
        # What a reset preempted waits for its keys and values to be computed again.
        waiting = max(0, stats.num_waiting_reqs - self._excused)
        self._waiting = waiting if self._waiting is None else min(self._waiting, waiting)

    def _all_told(self, stats: SchedulerStats, told: IterationStats | None) -> bool:
        """Say whether no request that lives has a preemption by a reset still to tell.

        A reset puts what ran before whatever waits, so that all of it runs again once nothing waits
        or as many run as before; and it has told once every running request gave a token.
        """
        run_again = stats.num_waiting_reqs == 0 or stats.num_running_reqs >= self._reset_from
        if told is None:
            return run_again and stats.num_running_reqs == 0
        gave_token = len(told.time_to_first_tokens_iter) + len(told.inter_token_latencies_iter)
        return run_again and gave_token - len(told.finished_requests) >= stats.num_running_reqs

    def log_engine_initialized(self) -> None:
        """Print nothing."""

    def record_admission_rejection(self, reason: str) -> None:
        """Count nothing: nothing is rejected here."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Export nothing."""
