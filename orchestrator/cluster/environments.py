"""Build the environments of a run: its own, and those that sources and held-out sets name.

Runs in the driver, before anything starts. Rollout workers prepare them and play in them.
"""

from __future__ import annotations

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from conf.schema import TrainConfig
from workers.rollout.limits import PROCESS, BoundedEnvironment, RolloutLimits


def build_environments(config: TrainConfig) -> dict[str, BoundedEnvironment]:
    """Return the environments by the keys of `TrainConfig.environments`.

    Raises:
        ValueError: a player refuses its values, or can't play in a process of its own; the message
            names the source or the set.
    """
    found = {}
    for key, own in config.environments.items():
        try:
            player = instantiate(OmegaConf.create(own.player), _convert_="all")
        except InstantiationException as error:
            where = f"{key}: " if key else ""
            raise ValueError(f"{where}{error.__cause__ or error}") from error
        if own.isolation == PROCESS:
            _check_isolation(player, f"{key}.environment".lstrip("."))
        found[key] = BoundedEnvironment(
            environment=player,
            isolation=own.isolation,
            limits=RolloutLimits(
                max_turns=own.max_turns,
                max_turn_tokens=own.max_turn_tokens,
                max_observation_bytes=own.max_observation_bytes,
                max_image_bytes=own.max_image_bytes,
                stretch_s=config.cluster.timeouts.environment_s,
                total_s=own.time_s,
            ),
        )
    return found


def _check_isolation(player: Any, key: str) -> None:
    """Refuse a process for each rollout where it can't be, or brings nothing."""
    name = type(player).__name__
    if hasattr(player, "prepare"):
        why = (
            f"{name} has a method `prepare`, and what that makes (processes, a port) is one for "
            "all rollouts of a worker"
        )
    elif getattr(player, "never_blocks", False):
        why = f"{name} never blocks, so it plays on the rollout worker's event loop"
    else:
        return
    raise ValueError(f"{key}.isolation=process: {why}; set it to thread")
