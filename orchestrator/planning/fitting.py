"""Refuse a run that a GPU cannot hold, with the sum that says so and what would fit.

Runs in the driver, on the estimates of `memory.py`. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from conf.schema import ArchitectureConfig, TrainConfig
from orchestrator.planning.architecture import architecture_of, num_parameters
from orchestrator.planning.memory import GIB, Share, kv_bytes_per_token, share_of, shares
from orchestrator.planning.roles import PlannedRole


def check(config: TrainConfig, roles: Sequence[PlannedRole]) -> None:
    """Check that a GPU of `cluster.gpu_memory_gib` can hold the roles that share it.

    Roles with less than a whole GPU share one, so their memory is added; for colocated roles, the
    memory of each turn. Nothing is checked where the GPU's memory or the model's sizes are unknown,
    except the key/value cache, which needs the model's sizes alone.

    Raises:
        ValueError: with the arithmetic and the setting to change.
    """
    model, have = architecture_of(config.model), config.cluster.gpu_memory_gib
    if model is None:
        return
    _check_cache(config, model)
    if have is None:
        return
    present = shares(config, model, roles)
    fractional = {role.name for role in roles if role.num_gpus < 1}
    shared = [share for share in present if share.role in fractional]
    at_once = [*([share] for share in present if share not in shared), shared]
    if config.cluster.colocated:
        at_once = [
            [share.resting() if share.role == role else share for share in present]
            for role in ("rollout", "learner")
        ]
    for together in at_once:
        total = sum(share.total for share in together)
        if total > have * GIB:
            raise ValueError(
                f"cluster={config.cluster.name} can't hold {config.model.name} "
                f"({num_parameters(model) / 1e9:.2f} B parameters): "
                f"{'; '.join(map(str, together))}; that is {total / GIB:.1f} GiB on one GPU of "
                f"{have:g} GiB. {_remedy(config, model, together)}"
            )


def _check_cache(config: TrainConfig, model: ArchitectureConfig) -> None:
    rollout = config.rollout
    needed = kv_bytes_per_token(model, config) * rollout.max_model_len / GIB
    if rollout.kv_cache_gib is not None and rollout.kv_cache_gib < needed:
        raise ValueError(
            f"rollout.kv_cache_gib={rollout.kv_cache_gib:g} can't hold one sequence: "
            f"{kv_bytes_per_token(model, config) / 1024:g} KiB per token x rollout.max_model_len="
            f"{rollout.max_model_len} = {needed:.2f} GiB; raise it, or choose a cluster= of GPUs"
        )


def _remedy(config: TrainConfig, model: ArchitectureConfig, together: list[Share]) -> str:
    """Find the fewest settings with which the roles fit, in the order of price."""
    have = (config.cluster.gpu_memory_gib or 0.0) * GIB
    if all(share.role == "rollout" for share in together):
        return (
            "Lower rollout.kv_cache_gib, raise rollout.tensor_parallel_size, or choose a cluster= "
            "with larger GPUs"
        )
    engines = sum(share.total for share in together if share.role == "rollout")
    learner, changes = config.learner, dict[str, Any]()
    candidates: list[dict[str, Any]] = [{"gradient_checkpointing": True}, {"zero_stage": 3}]
    candidates += [{"num_ranks": learner.num_ranks * 2**k} for k in range(1, 11)]
    if config.model.dtype != config.model.param_dtype:
        candidates.insert(2, {"param_dtype": config.model.dtype})
    for more in candidates:
        changes |= {
            name: value for name, value in more.items() if getattr(learner, name, "") != value
        }
        trial = _changed(config, changes)
        total = engines + sum(
            share_of(trial, model, share.role).total
            for share in together
            if share.role != "rollout"
        )
        if total <= have:
            words = " ".join(
                f"{'model' if name == 'param_dtype' else 'learner'}.{name}={value}"
                for name, value in changes.items()
            )
            return f"{words.replace('True', 'true')} would fit: {total / GIB:.1f} GiB"
    return "Choose a smaller model=, or a cluster= with larger GPUs"


def _changed(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    """Return the configuration with other settings of learner, critic and weights."""
    learner = {name: value for name, value in changes.items() if name != "param_dtype"}
    kept = changes.get("param_dtype", config.model.param_dtype)
    # The critic takes these settings from the learner, unless it was given its own.
    return replace(
        config,
        model=replace(config.model, param_dtype=kept),
        learner=replace(config.learner, **learner),
        critic=replace(config.critic, **learner),
    )
