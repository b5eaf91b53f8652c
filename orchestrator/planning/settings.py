"""Turn the configuration into the settings of each engine: the only module that imports both.

Runs in the driver. Starts no engine: the settings are arguments of the workers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from algorithms.algorithm import Algorithm
from conf.schema import OptimizerConfig, TrainConfig
from orchestrator.planning import judges
from workers.data.images.settings import ImageLimits
from workers.engines.judge.settings import JudgeSettings
from workers.engines.model.lora_settings import (
    LoraSettings,
    adapted_leaves,
    adapted_modules,
    check_published,
    linear_names,
)
from workers.engines.vllm.settings import VLLMSettings
from workers.engines.zero.settings import Dtype, ExportDtype, OptimizerSettings, ZeroSettings
from workers.models.vocabulary import known_ids
from workers.rollout.early_stop import EarlyStop


def check_settings(config: TrainConfig, algorithm: Algorithm, *, transport: str) -> None:
    """Build the settings of every process that a launch would start, and drop them.

    A model that is built or downloaded on first use has no folder yet: its name stands for it, and
    an adapter's layers, which are read from the folder, are left to the launch.

    Args:
        config: of the run.
        algorithm: decides which roles run.
        transport: of the weights.

    Raises:
        ValueError: the settings of a role are impossible; names the section of the configuration.
    """
    path = config.model.path or config.model.name
    builders: dict[str, Callable[[], object]] = {}
    if config.trainer.learns:
        builders["learner"] = lambda: policy_settings(config, path, trains=True)
        if "ref_logprobs" in algorithm.required_columns:
            builders["reference"] = lambda: policy_settings(config, path, trains=False)
        if algorithm.needs_critic:
            builders["critic"] = lambda: critic_settings(config, path)
    by_itself = config.model.adapter.trains and config.model.adapter.publish == "adapter"
    if not config.rollout.replay.replays and not (by_itself and not Path(path).is_dir()):
        builders["rollout"] = lambda: vllm_settings(config, path, engine_id=0, transport=transport)
    if config.reward.engine.model is not None and not config.rollout.replay.replays:
        builders["reward"] = lambda: judge_settings(config)
    for section, build in builders.items():
        try:
            build()
        except ValueError as error:
            raise ValueError(f"{section}: {error}") from error


def image_limits(config: TrainConfig) -> ImageLimits | None:
    """Return the limits of the images of prompts and environments; None where neither shows any."""
    shown = [bool(config.data.image_columns)]
    shown += [own.image_column is not None for own in config.evaluation.sets.values()]
    shown += [own.shows_images for own in config.environments.values()]
    if not any(shown):
        return None
    images = config.data.images
    return ImageLimits(max_pixels=images.max_pixels, max_per_prompt=images.max_per_prompt)


def vllm_settings(
    config: TrainConfig,
    model_path: str,
    *,
    engine_id: int,
    transport: str,
    gpu_fraction: float | None = None,
) -> VLLMSettings:
    """Return the settings of engine number `engine_id`, which gets its weights by `transport`.

    `gpu_fraction` is the share of a GPU with others on it (`engine_memory.engine_fraction`).
    """
    rollout, timeouts = config.rollout, config.cluster.timeouts
    cache_gib = rollout.kv_cache_gib
    recompute_kv = config.schedule.kv_cache == "recompute"
    return VLLMSettings(
        model_path=model_path,
        device="cuda" if config.cluster.rollout.num_gpus else "cpu",
        dtype=rollout.dtype,
        max_model_len=rollout.max_model_len,
        max_num_seqs=rollout.max_num_seqs,
        tensor_parallel_size=rollout.tensor_parallel_size,
        kv_cache_memory_bytes=None if cache_gib is None else int(cache_gib * 2**30),
        gpu_memory_utilization=gpu_fraction,
        enforce_eager=rollout.enforce_eager,
        sleeps=config.cluster.colocated,
        recompute_kv=recompute_kv,
        enable_prefix_caching=recompute_kv,  # or a new prompt would be given stale keys and values
        seed=config.seed,
        known_ids=_known_ids(model_path),
        weight_transfer_backend=transport,
        engine_id=engine_id,
        **_adapter_slots(config, model_path),
        keep_special_tokens=config.reward.keep_special_tokens,
        request_timeout_s=timeouts.request_s,
        control_timeout_s=timeouts.publish_s,
        images=image_limits(config),
        engine_kwargs=rollout.engine_kwargs,
    )


def judge_settings(config: TrainConfig) -> JudgeSettings:
    """Return the settings of every engine of the run's own judge.

    Raises:
        ValueError: the run has none, or an argument of vLLM that is not the user's to set.
    """
    engine, role = config.reward.engine, config.cluster.judge
    if engine.model is None:
        raise ValueError("reward.engine.model=None: the run serves no judge")
    cache_gib = engine.kv_cache_gib
    return JudgeSettings(
        model_path=engine.model,
        device="cuda" if role.num_gpus else "cpu",
        dtype=engine.dtype,
        max_model_len=judges.context(config),
        max_num_seqs=engine.max_num_seqs,
        tensor_parallel_size=engine.tensor_parallel_size,
        kv_cache_memory_bytes=None if cache_gib is None else int(cache_gib * 2**30),
        threads=role.threads,
        seed=config.seed,
        arguments=tuple(engine.arguments),
    )


def policy_settings(config: TrainConfig, model_path: str, *, trains: bool) -> ZeroSettings:
    """Return the settings of a rank of the learner, or of a policy that only scores."""
    learner, reference = config.learner, config.reference
    return ZeroSettings(
        model=model_path,
        zero_stage=learner.zero_stage if trains else reference.stage(learner),
        dtype=cast("Dtype", config.model.dtype),
        param_dtype=cast("Dtype", config.model.param_dtype),
        optimizer=optimizer_settings(config) if trains else None,
        adapter=adapter_settings(config) if trains else None,
        freeze=None if config.model.freeze is None else tuple(config.model.freeze),
        max_pixels=config.data.images.max_pixels,
        gradient_checkpointing=learner.gradient_checkpointing,
        attention=learner.attention,
        longest=config.rollout.max_model_len,
        known_ids=_known_ids(model_path),
        router_balance=learner.router_balance if trains else 0.0,
        head_chunk=learner.head_chunk,
        sequence_parallel_size=learner.sequence_parallel_size,
        offload_optimizer=learner.offload_optimizer and trains,
        offload_params=learner.offload_params if trains else reference.offloads(learner),
        exports=config.trainer.export and trains,
        export_dtype=cast("ExportDtype", config.trainer.export_dtype),
        deepspeed=learner.deepspeed,
    )


def critic_settings(config: TrainConfig, critic_path: str) -> ZeroSettings:
    """Return the settings of a rank of the critic."""
    critic = config.critic
    return ZeroSettings(
        model=critic_path,
        zero_stage=critic.zero_stage,
        dtype=cast("Dtype", config.model.dtype),
        param_dtype=cast("Dtype", config.model.param_dtype),
        optimizer=_optimizer(
            critic.optimizer, total_steps=config.trainer.total_steps * critic.num_updates
        ),
        gradient_checkpointing=critic.gradient_checkpointing,
        attention=critic.attention,
        longest=config.rollout.max_model_len,
        offload_optimizer=critic.offload_optimizer,
        offload_params=critic.offload_params,
        deepspeed=critic.deepspeed,
    )


def early_stop(config: TrainConfig, algorithm: Algorithm) -> EarlyStop | None:
    """Return the rule by which engines skip the rest of a group's samples; None if not set."""
    samples = config.rollout.early_stop_samples
    return EarlyStop(settled=algorithm.settled, min_samples=samples) if samples else None


def adapter_settings(config: TrainConfig) -> LoraSettings | None:
    """Return the settings of the learner's adapter; None where all weights train."""
    adapter = config.model.adapter
    if not adapter.trains:
        return None
    targets = adapter.target_modules
    return LoraSettings(
        rank=adapter.rank,
        alpha=adapter.alpha,
        target_modules=targets if isinstance(targets, str) else tuple(targets),
        publish="adapter" if adapter.publish == "adapter" else "merged",
        seed=config.seed,
    )


def _known_ids(model_path: str) -> int | None:
    """Return the ids that can be sampled, where the folder is there and the head has others."""
    folder = Path(model_path)
    return known_ids(folder) if folder.is_dir() else None


def _adapter_slots(config: TrainConfig, model_path: str) -> dict[str, Any]:
    """Return the slots that an engine reserves for an adapter which is published by itself."""
    adapter = adapter_settings(config)
    if adapter is None or adapter.publish == "merged":
        return {}
    names = linear_names(Path(model_path))
    check_published(adapter.publish, adapted_modules(adapter.target_modules, names))
    layers = adapted_leaves(adapter.target_modules, names)
    return {"adapter_rank": adapter.rank, "adapter_layers": layers}


def optimizer_settings(config: TrainConfig) -> OptimizerSettings:
    """Return the settings of the learner's optimizer, whose schedule ends with the run."""
    trainer = config.trainer
    steps = trainer.total_steps - config.critic.warmup_steps
    return _optimizer(config.learner.optimizer, total_steps=steps * trainer.num_updates)


def _optimizer(optimizer: OptimizerConfig, *, total_steps: int) -> OptimizerSettings:
    return OptimizerSettings(
        name="adamw" if optimizer.name == "adamw" else "sgd",
        lr=optimizer.lr,
        betas=(optimizer.betas[0], optimizer.betas[1]),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        schedule=optimizer.schedule,
        warmup_steps=optimizer.warmup_steps,
        total_steps=total_steps,
    )
