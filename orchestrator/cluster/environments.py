"""Build the environments of a run: its own, and those that sources and held-out sets name.

Runs in the driver, before anything starts. Rollout workers prepare them and play in them.
"""

from __future__ import annotations

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from conf.schema import TrainConfig
from workers.rollout.limits import BoundedEnvironment, RolloutLimits


def build_environments(config: TrainConfig) -> dict[str, BoundedEnvironment]:
    """Return the environments by the keys of `TrainConfig.environments`.

    Raises:
        ValueError: a player refuses its values; the message names the source or the set.
    """
    found = {}
    for key, own in config.environments.items():
        try:
            player = instantiate(OmegaConf.create(own.player), _convert_="all")
        except InstantiationException as error:
            where = f"{key}: " if key else ""
            raise ValueError(f"{where}{error.__cause__ or error}") from error
        found[key] = BoundedEnvironment(
            environment=player,
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
