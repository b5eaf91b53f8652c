"""Memory of an engine on its GPU: the share that it may take, and what its cache holds.

Computed from sizes alone, like `memory.py`, whose shares it reads. Runs in the driver. vLLM itself
measures what its weights and its working memory leave for the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from conf.schema import ArchitectureConfig, TrainConfig
from orchestrator.planning import memory
from orchestrator.planning.architecture import architecture_of
from orchestrator.planning.roles import PlannedRole, role_named
from orchestrator.telemetry.counting import counted

VLLM_FRACTION = 0.92  # of a GPU that vLLM takes where it is told nothing


def engine_fraction(config: TrainConfig, roles: Sequence[PlannedRole]) -> float | None:
    """Return the share of a GPU that an engine may take, in [0.01, 0.92].

    vLLM starts only where so much is free, and gives its cache what the weights leave of it. None
    where an engine has its GPU for itself: vLLM's own choice. Where others share it: of an explicit
    `rollout.kv_cache_gib` what the engine needs; else what the others leave, which for a learner
    that takes turns is what stays on the GPU while engines sample. So an engine that died can be
    loaded again beside the learner. Where sizes are unknown, as those of a reward model on a part
    of a GPU: the share that Ray counts.
    """
    role = role_named(roles, "rollout")
    if role is None or not 0 < role.num_gpus < 1:
        return None
    model, have = architecture_of(config.model), config.cluster.gpu_memory_gib
    reward = role_named(roles, "reward")
    if model is None or have is None or (reward is not None and 0 < reward.num_gpus < 1):
        return role.num_gpus
    if config.rollout.kv_cache_gib is not None:
        taken = memory.engine_share(config, model).total
    else:
        others = [
            memory.share_of(config, model, other.name)
            for other in roles
            if other.name != "rollout" and 0 < other.num_gpus < 1
        ]
        rests = config.cluster.colocated
        kept = [one.resting() if rests and one.role == "learner" else one for one in others]
        taken = have * memory.GIB - sum(share.total for share in kept)
    return min(max(int(100 * taken / (have * memory.GIB)) / 100, 0.01), VLLM_FRACTION)


def cache_bytes(
    config: TrainConfig, model: ArchitectureConfig, roles: Sequence[PlannedRole]
) -> float | None:
    """Return the bytes of an engine's cache on one device; None where they are not known before."""
    if config.rollout.kv_cache_gib is not None:
        return config.rollout.kv_cache_gib * memory.GIB
    if config.cluster.gpu_memory_gib is None:
        return None
    share = memory.engine_share(config, model)
    whole = (
        config.cluster.gpu_memory_gib
        * memory.GIB
        * (engine_fraction(config, roles) or VLLM_FRACTION)
    )
    return max(0.0, whole - share.parts["weights"] - share.parts["reserve"])


def describe_cache(config: TrainConfig, roles: Sequence[PlannedRole]) -> list[str]:
    """Return a line on what the key/value cache of an engine holds; none where it is unknown."""
    model = architecture_of(config.model)
    if model is None or not config.cluster.rollout.num_gpus:
        return []
    cache = cache_bytes(config, model, roles)
    if cache is None:
        return []
    longest = memory.kv_bytes_per_token(model, config) * config.rollout.max_model_len
    size = f", about {cache / memory.GIB:.1f} GiB," if config.rollout.kv_cache_gib is None else ""
    held = counted(round(cache / longest), "sequence")
    return [f"an engine's cache{size} holds {held} of the greatest length"]
