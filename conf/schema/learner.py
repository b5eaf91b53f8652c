"""Policy in training: ranks, stage, memory, optimizer.

Read by the driver, which makes the settings of the learner's ranks of it. Imports no engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from conf.schema.checks import choose, require


@dataclass(kw_only=True)
class OptimizerConfig:
    """Optimizer and its learning rate."""

    name: str = "adamw"
    lr: float = 1e-6
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0  # optimizer steps taken

    def check(self, key: str) -> None:
        """Raise a ValueError for an impossible value that stands under `key`."""
        choose(f"{key}.name", self.name, ("adamw", "sgd"))
        choose(f"{key}.schedule", self.schedule, ("constant", "linear", "cosine"))
        require(len(self.betas) == 2, f"{key}.betas", self.betas, "must be two numbers")
        require(
            all(0 <= beta < 1 for beta in self.betas),
            f"{key}.betas",
            self.betas,
            "must be from 0 up to, and below, 1",
        )
        for name in ("lr", "eps", "max_grad_norm"):
            value = getattr(self, name)
            require(value > 0, f"{key}.{name}", value, "must be positive")
        for name in ("weight_decay", "warmup_steps"):
            value = getattr(self, name)
            require(value >= 0, f"{key}.{name}", value, "must not be negative")


@dataclass(kw_only=True)
class ProfileConfig:
    """Steps whose optimizer updates are recorded, for Perfetto and PyTorch's memory viewer."""

    steps: list[int] = field(default_factory=list)  # none: nothing is recorded, at no cost
    ranks: list[int] = field(default_factory=lambda: [0])
    memory: bool = False  # allocations too; on CUDA also a snapshot with their stacks


@dataclass(kw_only=True)
class LearnerConfig:
    """Policy under DeepSpeed ZeRO: ranks, stage, memory, optimizer."""

    num_ranks: int = 1
    zero_stage: int = 0
    sequence_parallel_size: int = 1  # neighbouring ranks that share every micro-batch (Ulysses)
    token_budget: int = 2048  # tokens of a packed micro-batch, a hard limit
    attention: str = "varlen_sdpa"
    shared_prefix: str = (
        "auto"  # siblings compute their prompt once: true, false; auto: if they can
    )
    gradient_checkpointing: bool = False
    router_balance: float = 0.0  # coefficient of the loss that balances a mixture's experts
    head_chunk: int | None = None  # rows of [chunk, vocabulary] held at a time; null: by device
    offload_optimizer: bool = False  # optimizer state in host memory; ZeRO 1 to 3
    offload_params: bool = False  # parameters in host memory; ZeRO 3
    max_skipped_steps: int = 5  # updates in a row with a non-finite gradient that end the run
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)  # raw, merged over ours

    def __post_init__(self) -> None:
        """Spell the truth values that YAML gives as this schema does."""
        self.shared_prefix = self.shared_prefix.lower()

    @property
    def num_data_parallel(self) -> int:
        """Ranks, or groups of ranks that share their micro-batches, with rows of their own."""
        return self.num_ranks // self.sequence_parallel_size

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        require(self.num_ranks >= 1, "learner.num_ranks", self.num_ranks, "must be at least 1")
        size = self.sequence_parallel_size
        require(
            size >= 1 and self.num_ranks % size == 0,
            "learner.sequence_parallel_size",
            size,
            f"must divide learner.num_ranks={self.num_ranks}; change one of them",
        )
        require(
            size == 1 or self.attention == "varlen_sdpa",
            "learner.attention",
            self.attention,
            f"learner.sequence_parallel_size={size} needs varlen_sdpa",
        )
        require(
            self.zero_stage in (0, 1, 2, 3),
            "learner.zero_stage",
            self.zero_stage,
            "must be 0, 1, 2 or 3",
        )
        require(
            all(0 <= rank < self.num_ranks for rank in self.profile.ranks),
            "learner.profile.ranks",
            self.profile.ranks,
            f"must be ranks of the learner, 0 to {self.num_ranks - 1}",
        )
        for name in ("token_budget", "head_chunk", "max_skipped_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"learner.{name}", value, "must be at least 1")
        require(
            self.router_balance >= 0,
            "learner.router_balance",
            self.router_balance,
            "must not be negative",
        )
        self.optimizer.check("learner.optimizer")
        choose("learner.shared_prefix", self.shared_prefix, ("auto", "true", "false"))
        choose("learner.attention", self.attention, ("varlen_sdpa", "flash_attention_2"))
