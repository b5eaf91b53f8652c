"""Environment: the program that plays a rollout, and the budgets of a rollout.

Read by the driver, which sends both to the rollout workers. Plays nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from conf.schema.checks import choose, require


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
    shows_images: bool = False  # it sends images; those of prompts are data.image_column's
    max_image_bytes: int = 16_777_216  # of the files of its images in one rollout
    time_s: float | None = None  # of the environment in one rollout, beside its draws; null: none
    isolation: str = "thread"  # of the rollout worker, or process: each rollout has one of its own

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
            self.max_image_bytes >= 0,
            f"{key}.max_image_bytes",
            self.max_image_bytes,
            "must be at least 0; shows_images=false is an environment of text",
        )
        require(
            self.time_s is None or self.time_s > 0,
            f"{key}.time_s",
            self.time_s,
            "must be positive, or null for no limit but cluster.timeouts.environment_s",
        )
        choose(f"{key}.isolation", self.isolation, ("thread", "process"))

    def check_calls(self, stretch_s: float, key: str = "environment") -> None:
        """Refuse calls of tools that may last longer than what waits for the calls.

        Args:
            stretch_s: `cluster.timeouts.environment_s`, for all calls of one turn.
            key: place of the section.

        Raises:
            ValueError: names both limits.
        """
        player: Any = self.player
        if not isinstance(player, Mapping) or "toolsets" not in player:
            return
        limits = [(stretch_s, "cluster.timeouts.environment_s")]
        limits += [] if self.time_s is None else [(self.time_s, f"{key}.time_s")]
        _require_below(f"{key}.player.time_s", player.get("time_s"), *min(limits))
        for name, toolset in player["toolsets"].items():
            own = toolset.get("limits") if isinstance(toolset, Mapping) else None
            _require_below(
                f"{key}.player.toolsets.{name}.limits.wall_s",
                own.get("wall_s") if isinstance(own, Mapping) else None,
                player.get("time_s"),
                f"{key}.player.time_s",
            )


def _require_below(key: str, seconds: Any, limit_s: Any, limit_key: str) -> None:
    """Require that a time is below another one; other faults of either are found elsewhere."""
    known = all(isinstance(value, int | float) for value in (seconds, limit_s))
    require(
        not known or seconds < limit_s,
        key,
        seconds,
        f"must be below {limit_key}={limit_s}, which ends what takes longer; lower it, or raise "
        f"{limit_key}",
    )
