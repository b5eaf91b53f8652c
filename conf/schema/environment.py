"""Environment: the program that plays a rollout, and the budgets of a rollout.

Read by the driver, which sends both to the rollout workers. Plays nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from conf.schema.checks import require


@dataclass(kw_only=True)
class EnvironmentConfig:
    """Program that plays one rollout after another, and what one rollout may use.

    The tokens behind a prompt, sampled and observed together, are
    `rollout.sampling.max_new_tokens`.
    """

    player: Any = MISSING  # a class with `play(task, session)`
    max_turns: int = 16  # sampled in one rollout
    max_turn_tokens: int | None = None  # sampled in one turn; null: what is left of all tokens
    max_observation_bytes: int = 65_536  # of the environment's texts in one rollout
    time_s: float | None = None  # of the environment in one rollout, beside its draws; null: none

    def check(self, key: str = "environment") -> None:
        """Raise a ValueError for an impossible value that stands under `key`."""
        require(
            isinstance(self.player, dict) and "_target_" in self.player,
            f"{key}.player",
            self.player,
            "must name a class with `play(task, session)` under _target_",
        )
        require(self.max_turns >= 1, f"{key}.max_turns", self.max_turns, "must be at least 1")
        require(
            self.max_turn_tokens is None or self.max_turn_tokens >= 1,
            f"{key}.max_turn_tokens",
            self.max_turn_tokens,
            "must be at least 1, or null for what is left of rollout.sampling.max_new_tokens",
        )
        require(
            self.max_observation_bytes >= 0,
            f"{key}.max_observation_bytes",
            self.max_observation_bytes,
            "must be at least 0",
        )
        require(
            self.time_s is None or self.time_s > 0,
            f"{key}.time_s",
            self.time_s,
            "must be positive, or null for no limit but cluster.timeouts.environment_s",
        )
