"""Scoring: the scorer, its processes, its time limit.

Read by the driver, which launches the reward workers. Scores nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from conf.schema.checks import require


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
