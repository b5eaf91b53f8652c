"""Typed schema of a training configuration: names, types, units and ranges of every key.

One file per Hydra group. Hydra merges the YAML groups of this package into `TrainConfig`, so a key
that is not written here fails at composition. `OmegaConf.to_object` then builds these dataclasses;
each section's `check` names the value that can't be and the remedy, and `TrainConfig.check` calls
all of these and adds what several sections must agree on. Read by the driver.
Nothing here imports torch, ray or an engine: a configuration is validated before anything starts.

Sections typed `Any` hold `_target_` nodes (the dotted path is the registry) and are built by
`hydra.utils.instantiate`.
"""

from conf.schema.cluster import (
    ClusterConfig,
    CriticRoleConfig,
    RoleConfig,
    TimeoutConfig,
)
from conf.schema.critic import CriticConfig
from conf.schema.data import CurriculumConfig, DataConfig, SourceConfig
from conf.schema.environment import EnvironmentConfig
from conf.schema.evaluation import AnchorConfig, EvaluationConfig, EvaluationSetConfig
from conf.schema.learner import LearnerConfig, OptimizerConfig, ProfileConfig
from conf.schema.model import AdapterConfig, ArchitectureConfig, ModelConfig, TowerConfig
from conf.schema.reference import ReferenceConfig
from conf.schema.rehearsal import RehearsalConfig
from conf.schema.reward import JudgeEngineConfig, RewardConfig
from conf.schema.rollout import ReplayConfig, RolloutConfig, SamplingConfig
from conf.schema.schedule import ScheduleConfig
from conf.schema.tracking import TrackingConfig
from conf.schema.train import TrainConfig
from conf.schema.trainer import TrainerConfig

__all__ = [
    "AdapterConfig",
    "AnchorConfig",
    "ArchitectureConfig",
    "ClusterConfig",
    "CriticConfig",
    "CriticRoleConfig",
    "CurriculumConfig",
    "DataConfig",
    "EnvironmentConfig",
    "EvaluationConfig",
    "EvaluationSetConfig",
    "JudgeEngineConfig",
    "LearnerConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ProfileConfig",
    "ReferenceConfig",
    "RehearsalConfig",
    "ReplayConfig",
    "RewardConfig",
    "RoleConfig",
    "RolloutConfig",
    "SamplingConfig",
    "ScheduleConfig",
    "SourceConfig",
    "TimeoutConfig",
    "TowerConfig",
    "TrackingConfig",
    "TrainConfig",
    "TrainerConfig",
]
