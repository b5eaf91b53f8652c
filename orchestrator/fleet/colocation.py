"""Let engines and learner take turns on the same GPUs: one sleeps while the other works.

    turn          engines                              learner's optimizer state
    generate      awake                                in host memory
    learn()       asleep: weights and cache dropped    on the GPU
    receive()     their memory for weights is back     in host memory
    generate()    the cache's too                      in host memory

`receive` and `generate` also take from the learner and from the reference what PyTorch keeps for
later: activations, and the buffer of a publication. No other process could use it.

An engine that died is loaded again while engines sample: the pool, which asks for it, waits for
groups then and at no other time. It has room for what the learner leaves it at that time
(`planning/engine_memory.py`). Where it still loads when the learner's turn comes, `learn`
waits for it to have loaded and to sleep.

`Trainer.step` calls `learn` when it has its groups; the publisher calls `receive` before it sends
and `generate` before it reads from the engines which weights arrived. Runs in the driver. Every
call returns when all processes have answered, so that no two of them hold the same memory. Where
roles have devices of their own the calls do nothing; on CPU everything happens, and vLLM's sleep
frees nothing.

vLLM sleeps at level 2, which drops the weights. Level 1 copies the weights to host memory and back
in every step, although a publication replaces them at once: a publication is complete, and attested
tensor by tensor. Only with an adapter, or with frozen weights, a publication is not complete, and
the engines sleep at level 1. A checkpoint copies the learner's state to host memory, where the
state already is while engines sample, so a checkpoint needs no turn.
"""

from __future__ import annotations

from conf.schema import TrainConfig
from orchestrator.planning.sources import model_folder
from workers.calls import Call, bind
from workers.data.images.settings import is_vision_model
from workers.learner.rank_worker import RankWorker
from workers.rollout.worker import RolloutWorker
from workers.worker_group import WorkerGroup

DROP_WEIGHTS, KEEP_WEIGHTS = 2, 1  # vLLM's levels of sleep
WEIGHTS, CACHE = ["weights"], ["kv_cache"]  # vLLM's names of what wakes


def sleep_engines(engines: WorkerGroup[RolloutWorker], config: TrainConfig) -> None:
    """Put engines to sleep right after their start, so that the learner can load.

    `receive` wakes them.
    """
    limit_s = config.cluster.timeouts.start_s
    engines.call(bind(RolloutWorker.sleep, _level(config)), timeout_s=limit_s)


def _level(config: TrainConfig) -> int:
    """Return vLLM's level of sleep.

    With an adapter, or where weights are frozen (as a vision tower is), a publication brings back
    only the tensors that train, so the engines keep the others in host memory.
    """
    return DROP_WEIGHTS if publishes_all(config) else KEEP_WEIGHTS


class Colocation:
    """Turns of engines and learner on shared GPUs.

    Args:
        engines: the rollout workers.
        learner: the ranks of the learner.
        config: without `cluster.colocated` every turn does nothing.
        reference: ranks of the reference, where it has its own; they keep their weights.
    """

    def __init__(
        self,
        engines: WorkerGroup[RolloutWorker],
        learner: WorkerGroup[RankWorker],
        config: TrainConfig,
        reference: WorkerGroup[RankWorker] | None = None,
    ) -> None:
        self._engines, self._learner, self._reference = engines, learner, reference
        self._colocated = config.cluster.colocated
        self._level = _level(config) if self._colocated else DROP_WEIGHTS
        timeouts = config.cluster.timeouts
        self._limit_s = timeouts.publish_s
        self._load_s = timeouts.start_s + timeouts.publish_s
        self._metrics: dict[str, float] = {}

    def learn(self) -> None:
        """Drop the engines' weights and cache, then bring the learner's optimizer state back.

        An engine that loads answers when it has loaded, and sleeps like the others.
        """
        if self._colocated:
            self._call_engines(bind(RolloutWorker.sleep, self._level), limit_s=self._load_s)
            self._metrics["colocation/engines_asleep_bytes"] = self._used_bytes()
            self._learner.call(bind(RankWorker.reload_states), timeout_s=self._limit_s)

    def receive(self) -> None:
        """Move the learner's optimizer state off the GPU, then wake the engines' weights alone.

        The learner's parameters stay: publication and its probe read them.
        """
        if self._colocated:
            self._learner.call(bind(RankWorker.offload_states), timeout_s=self._limit_s)
            if self._reference is not None:
                self._reference.call(bind(RankWorker.empty_cache), timeout_s=self._limit_s)
            self._call_engines(bind(RolloutWorker.wake, WEIGHTS))

    def generate(self) -> None:
        """Wake the engines' cache as well, so that they go on sampling."""
        if self._colocated:
            self._learner.call(bind(RankWorker.empty_cache), timeout_s=self._limit_s)
            self._call_engines(bind(RolloutWorker.wake, CACHE))
            self._metrics["colocation/generating_bytes"] = self._used_bytes()

    def metrics(self) -> dict[str, float]:
        """Return the device memory in use, in bytes: the largest of any learner rank's GPU.

        Returns no metric on CPU.
        """
        return {name: value for name, value in self._metrics.items() if value}

    def _call_engines(
        self, call: Call[RolloutWorker, None], *, limit_s: float | None = None
    ) -> None:
        """Call all engines and ignore dead ones, which hold no memory.

        The pool restarts a dead engine when it next polls for samples.
        """
        self._engines.start(call, timeout_s=limit_s or self._limit_s).survivors()

    def _used_bytes(self) -> float:
        used = self._learner.call(bind(RankWorker.device_bytes), timeout_s=self._limit_s)
        return float(max(used))


def publishes_all(config: TrainConfig) -> bool:
    """Return True where a publication brings every weight that an engine holds.

    With an adapter, or with frozen weights, a publication brings only what trains.
    """
    if config.model.adapter.trains:
        return False
    if config.model.freeze is not None:
        return not config.model.freeze
    return not is_vision_model(model_folder(config.model))
