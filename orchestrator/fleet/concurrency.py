"""How many samples one engine should hold at a time: a pure controller, from reports to a limit.

Additive increase, multiplicative decrease (Chiu and Jain 1989): the limit grows by a constant while
it is what holds samples back and the engine copes, and is cut by a factor when the engine preempts,
runs out of key/value blocks, or queues more than a cut would remove. Nothing here calls an engine:
reports come from `engines.scheduler_watch`, limits go to `routing`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from conf.schema import TrainConfig
from workers.data.requests import EngineLoad

KV_FULL = 0.95  # share of key/value blocks in use from which on running samples get preempted


@dataclass(frozen=True, kw_only=True, slots=True)
class Concurrency:
    """The limit of one engine, in samples, and how it moves.

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
        """The controller after one report.

        A limit that was cut stays until the engine holds no more than it allows: what is reported
        before that is the load of the limit before.

        Args:
            load: what the engine reports.
            outstanding: samples that it held while it did.
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
    """Where the limit of every engine starts; none where whole batches begin at once."""
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
