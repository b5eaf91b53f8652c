"""Scoring: the scorer, its processes, its time limit, the engines of a judge.

Read by the driver, which launches the reward workers. Scores nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from conf.schema.checks import choose, require


@dataclass(kw_only=True)
class JudgeEngineConfig:
    """Engines of the run's own (vLLM) that serve a judge's frozen model, for judges without a url.

    Their devices and CPUs are `cluster.judge`.
    """

    model: str | None = None  # Hugging Face folder; null: judges are services with a url
    num_engines: int = 1  # the calls are spread over them
    tensor_parallel_size: int = 1
    dtype: str = "auto"  # of weights and activations; auto: what the device computes fastest
    max_model_len: int | None = None  # prompt and verdict, tokens; null: from the longest call
    max_num_seqs: int = 64  # calls that one engine answers together
    kv_cache_gib: float | None = None  # of each device; null: what is left of the engine's GPU
    arguments: list[str] = field(default_factory=list)  # further ones of `vllm serve`

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        for name in ("num_engines", "tensor_parallel_size", "max_num_seqs"):
            value = getattr(self, name)
            require(value >= 1, f"reward.engine.{name}", value, "must be at least 1")
        require(
            self.model is None or Path(self.model).is_absolute(),
            "reward.engine.model",
            self.model,
            "must be an absolute path: the engines start in another folder",
        )
        choose("reward.engine.dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        for name in ("max_model_len", "kv_cache_gib"):
            value = getattr(self, name)
            require(
                value is None or value > 0, f"reward.engine.{name}", value, "must be > 0, or null"
            )


@dataclass(kw_only=True)
class RewardConfig:
    """Scorer of finished trajectories, in killable processes, each sample under a time limit."""

    scorer: Any = MISSING
    num_workers: int = 1  # Ray actors
    num_processes: int = 1  # scoring processes of each
    timeout_s: float = 10.0  # per sample; the process is killed when it is over
    start_s: float = 120.0  # of a scoring process: imports, and the model of a reward model
    max_memory_mib: int | None = 8192  # that a scoring process may allocate; null: no limit
    keep_special_tokens: bool = False  # in the response, but for the token that ended it
    include_prefill: bool = False  # the response begins with what the template opened (<think>)
    engine: JudgeEngineConfig = field(default_factory=JudgeEngineConfig)

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        for name in ("num_workers", "num_processes"):
            value = getattr(self, name)
            require(value >= 1, f"reward.{name}", value, "must be at least 1")
        require(
            self.max_memory_mib is None or self.max_memory_mib >= 1,
            "reward.max_memory_mib",
            self.max_memory_mib,
            "must be at least 1, or null for no limit",
        )
        for name in ("timeout_s", "start_s"):
            value = getattr(self, name)
            require(value > 0, f"reward.{name}", value, "must be positive")
        self.engine.check()
