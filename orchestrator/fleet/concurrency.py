"""Limit the samples that one engine holds at a time: a pure controller, from reports to a limit.

Additive increase, multiplicative decrease (Chiu and Jain 1989): the limit grows by a constant while
the limit holds samples back and the engine is not overloaded. The limit is cut by a factor when the
engine preempts, runs out of key/value blocks, or queues more than a cut would remove. Runs in the
driver and calls no engine: reports come from `engines.vllm.scheduler_watch`, limits go to
`routing`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from conf.schema import TrainConfig
from workers.data.requests import EngineLoad

KV_FULL = 0.95  # share of key/value blocks in use from which on running samples get preempted


@dataclass(frozen=True, kw_only=True, slots=True)
class Concurrency:
    """Limit of one engine, in samples, with the constants of its increase and decrease.

    Attributes:
        limit: samples that the engine may hold.
        lowest, highest: bounds of the limit.
        increase: samples added by a report without pressure.
        decrease: factor of the limit under pressure.
    """

    limit: int
    lowest: int
    highest: int
    increase: int
    decrease: float

    def observe(self, load: EngineLoad, *, outstanding: int) -> Concurrency:
        """Return the controller after one report.

        A limit that was cut stays until the engine holds no more samples than the limit allows: a
        report before that shows the load of the limit before.

        Args:
            load: the engine's report.
            outstanding: samples that the engine held at the time of the report.
        """
        if load.steps == 0 or outstanding > self.limit:
            return self
        # A queue that one cut would empty is welcome: it fills slots between two reports.
        too_many_wait = load.waiting > outstanding - self.decrease * outstanding
        if load.preemptions or load.kv_usage >= KV_FULL or too_many_wait:
            return self._at(int(self.limit * self.decrease))
        held_back = outstanding + self.increase > self.limit
        if held_back and load.waiting == 0:
            return self._at(self.limit + self.increase)
        return self

    def _at(self, limit: int) -> Concurrency:
        return replace(self, limit=min(max(limit, self.lowest), self.highest))


def concurrency_of(config: TrainConfig) -> Concurrency | None:
    """Return the first limit of every engine; None where whole batches begin at once."""
    rollout, control = config.rollout, config.rollout.concurrency
    if config.schedule.max_staleness == 0 or not control.adaptive:
        return None
    lowest, limit, highest = control.bounds(
        max_num_seqs=rollout.max_num_seqs, group_size=rollout.samples_per_prompt
    )
    return Concurrency(
        limit=limit,
        lowest=lowest,
        highest=highest,
        increase=control.increase or rollout.samples_per_prompt,
        decrease=control.decrease,
    )
