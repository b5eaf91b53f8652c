"""Critic, which only algorithms with a value loss have: ranks, stage, memory, optimizer.

Read by the driver. Chooses no algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from conf.schema.checks import choose, require
from conf.schema.learner import OptimizerConfig


@dataclass(kw_only=True)
class CriticConfig:
    """Critic under DeepSpeed ZeRO. `conf/critic/zero.yaml` takes what it can from the learner.

    One optimizer update of the critic sees whole groups, as the learner's do, and need not see the
    same ones.
    """

    model: str | None = None  # folder whose backbone it starts from; null: the policy's
    num_ranks: int = 1
    zero_stage: int = 0
    token_budget: int = 2048  # tokens of a packed micro-batch, a hard limit
    attention: str = "varlen_sdpa"
    gradient_checkpointing: bool = False
    offload_optimizer: bool = False  # optimizer state in host memory; ZeRO 1 to 3
    offload_params: bool = False  # parameters in host memory; ZeRO 3
    updates_per_step: int = 1  # optimizer steps that share one rollout batch, in each pass over it
    epochs_per_step: int = 1  # passes over the rollout batch; old values stay those of credit time
    warmup_steps: int = 0  # steps of the run in which the critic trains and the policy does not
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)  # raw, merged over ours

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        for name in ("num_ranks", "token_budget", "updates_per_step", "epochs_per_step"):
            value = getattr(self, name)
            require(value >= 1, f"critic.{name}", value, "must be at least 1")
        require(
            self.zero_stage in (0, 1, 2, 3),
            "critic.zero_stage",
            self.zero_stage,
            "must be 0, 1, 2 or 3",
        )
        require(
            self.warmup_steps >= 0, "critic.warmup_steps", self.warmup_steps, "must not be negative"
        )
        choose("critic.attention", self.attention, ("varlen_sdpa", "flash_attention_2"))
        self.optimizer.check("critic.optimizer")

    @property
    def num_updates(self) -> int:
        """Optimizer steps of a step, over all passes."""
        return self.updates_per_step * self.epochs_per_step
