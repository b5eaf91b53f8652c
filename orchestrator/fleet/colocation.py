"""Engines and learner on the same GPUs, taking turns: who sleeps while the other works.

    turn          engines                              learner's optimizer state
    generate      awake                                in host memory
    learn()       asleep: weights and cache dropped    on the GPU
    receive()     their memory for weights is back     in host memory
    generate()    the cache's too                      in host memory

`Trainer.step` calls `learn` when it has its groups; the publisher calls `receive` before it sends
and `generate` before it asks the engines what arrived. Every call returns when all processes have
answered, so that no two of them hold the same memory. Where roles have devices of their own the
calls do nothing; on CPU everything happens, and vLLM's sleep frees nothing.

vLLM sleeps at level 2, which drops the weights. Level 1 copies them to host memory and back in
every step, and what it would bring back is replaced at once: a publication is complete, and
attested tensor by tensor. Only with an adapter it is not, and the engines sleep at level 1.
A checkpoint copies the learner's state to host memory, where it already is while engines sample, so
it needs no turn.
"""

from __future__ import annotations

from conf.schema import TrainConfig
from workers.calls import Call, bind
from workers.learner.rank_worker import RankWorker
from workers.rollout.worker import RolloutWorker
from workers.worker_group import WorkerGroup

DROP_WEIGHTS, KEEP_WEIGHTS = 2, 1  # vLLM's levels of sleep
WEIGHTS, CACHE = ["weights"], ["kv_cache"]  # vLLM's names of what wakes


def make_room(engines: WorkerGroup[RolloutWorker], config: TrainConfig) -> None:
    """Engines that have just started sleep, so that the learner can load; `receive` wakes them."""
    limit_s = config.cluster.timeouts.start_s
    engines.call(bind(RolloutWorker.sleep, _level(config)), timeout_s=limit_s)


def _level(config: TrainConfig) -> int:
    """Publications beside an adapter bring back only what it changes."""
    return KEEP_WEIGHTS if config.model.adapter.trains else DROP_WEIGHTS


class Colocation:
    """Whose turn it is.

    Args:
        engines: the rollout workers.
        learner: its ranks.
        config: `cluster.colocated` says whether there is anything to do.
    """

    def __init__(
        self,
        engines: WorkerGroup[RolloutWorker],
        learner: WorkerGroup[RankWorker],
        config: TrainConfig,
    ) -> None:
        self._engines, self._learner = engines, learner
        self._colocated = config.cluster.colocated
        self._level = _level(config)
        self._limit_s = config.cluster.timeouts.publish_s
        self._metrics: dict[str, float] = {}

    def learn(self) -> None:
        """Engines give up weights and cache; then the learner's optimizer state is brought back."""
        if self._colocated:
            self._engines_do(bind(RolloutWorker.sleep, self._level))
            self._metrics["colocation/engines_asleep_bytes"] = self._used_bytes()
            self._learner.call(bind(RankWorker.reload_states), timeout_s=self._limit_s)

    def receive(self) -> None:
        """The learner's optimizer state leaves; then engines take memory for weights alone.

        The learner's parameters stay: publication and its probe read them.
        """
        if self._colocated:
            self._learner.call(bind(RankWorker.offload_states), timeout_s=self._limit_s)
            self._engines_do(bind(RolloutWorker.wake, WEIGHTS))

    def generate(self) -> None:
        """Engines take the rest of their memory and go on sampling."""
        if self._colocated:
            self._engines_do(bind(RolloutWorker.wake, CACHE))
            self._metrics["colocation/generating_bytes"] = self._used_bytes()

    def metrics(self) -> dict[str, float]:
        """Device memory in use, the largest of any learner rank's GPU; nothing on CPU."""
        return {name: value for name, value in self._metrics.items() if value}

    def _engines_do(self, call: Call[RolloutWorker, None]) -> None:
        """A dead engine has no memory to give or take; whoever samples from it next restarts it."""
        self._engines.start(call, timeout_s=self._limit_s).survivors()

    def _used_bytes(self) -> float:
        used = self._learner.call(bind(RankWorker.device_bytes), timeout_s=self._limit_s)
        return float(max(used))
