"""Whole run, and what its sections must agree on.

Read by the driver. Reads no model, no data and no cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from conf.schema.checks import choose, require
from conf.schema.cluster import ClusterConfig
from conf.schema.critic import CriticConfig
from conf.schema.data import DataConfig
from conf.schema.environment import EnvironmentConfig
from conf.schema.evaluation import EvaluationConfig
from conf.schema.learner import LearnerConfig
from conf.schema.model import ModelConfig
from conf.schema.reference import ReferenceConfig
from conf.schema.rehearsal import RehearsalConfig
from conf.schema.reward import RewardConfig
from conf.schema.rollout import RolloutConfig
from conf.schema.schedule import ScheduleConfig
from conf.schema.tracking import TrackingConfig
from conf.schema.trainer import TrainerConfig
from conf.tables.transports import TRANSPORTS, any_of


@dataclass(kw_only=True)
class TrainConfig:
    """Configuration of a whole run."""

    run_name: str = "run"
    output_dir: str = "runs"
    seed: int = 0
    resume: str = "never"  # auto: go on from the folder's last checkpoint; changed: see resuming.py
    dry_run: bool = False
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    algorithm: Any = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    rehearsal: RehearsalConfig = field(default_factory=RehearsalConfig)

    def __post_init__(self) -> None:
        """Take the resources from every role that does not run, whatever `cluster=` gives."""
        if self.rollout.replay.replays:
            self.rollout.num_engines, self.cluster.rollout.num_gpus = 0, 0.0
            self.cluster.colocated = False
        if not self.trainer.learns:
            for role in (self.cluster.learner, self.cluster.reference, self.cluster.critic):
                role.num_gpus = 0.0
            self.cluster.colocated = False

    def check(self) -> None:
        """Raise a ValueError for an impossible value of a section, or of several sections together.

        Raises:
            ValueError: on the first value that can't be; names key, value and remedy.
        """
        for section in vars(self).values():
            if hasattr(section, "check"):
                section.check()
        for key, each in self.environments.items():
            name = f"{key}.environment".lstrip(".")
            each.check_calls(self.cluster.timeouts.environment_s, name)
        choose("resume", self.resume, ("never", "auto", "changed"))
        self._check_lengths()
        self._check_roles()
        self._check_cache()
        if self.trainer.learns:
            self._check_learner()
        if self.cluster.colocated:
            self._check_turns()

    def _check_lengths(self) -> None:
        """Check prompt and response against the engines' context and the learner's budget."""
        prompt, context = self.data.max_prompt_tokens, self.rollout.max_model_len
        for name in ("sampling", "eval_sampling"):
            new = getattr(self.rollout, name).max_new_tokens
            require(
                prompt + new <= context,
                "rollout.max_model_len",
                context,
                f"is below data.max_prompt_tokens + rollout.{name}.max_new_tokens = {prompt} + "
                f"{new} = {prompt + new}; raise it or lower one of those",
            )
        for name, own in self.evaluation.sets.items():
            new = 0 if own.sampling is None else own.sampling.max_new_tokens
            require(
                prompt + new <= context,
                "rollout.max_model_len",
                context,
                f"is below data.max_prompt_tokens + evaluation.sets.{name}.sampling."
                f"max_new_tokens = {prompt} + {new}; raise it or lower one of those",
            )
        require(
            not self.trainer.learns or self.longest <= self.learner.token_budget,
            "learner.token_budget",
            self.learner.token_budget,
            f"is below the longest sequence, {self.longest} tokens; raise it",
        )

    def _check_cache(self) -> None:
        """Refuse to measure what is left of a memory that others fill at the same time."""
        num_gpus = self.cluster.rollout.num_gpus
        measured = num_gpus >= 1 or (self.cluster.colocated and num_gpus > 0)
        require(
            self.rollout.kv_cache_gib is not None or measured or self.rollout.replay.replays,
            "rollout.kv_cache_gib",
            self.rollout.kv_cache_gib,
            "null takes what is left of an engine's own GPU; name a size where engines run on "
            "CPUs, or share a GPU with a learner that loads beside them",
        )

    def _check_roles(self) -> None:
        """Refuse what a run without engines, or without a learner, can't do."""
        trainer, replays = self.trainer, self.rollout.replay.replays
        lacks = "rollout=replay has no engine" if replays else "trainer=rollout_only has no learner"
        require(
            trainer.learns or not replays,
            "trainer.learns",
            trainer.learns,
            "with rollout=replay nothing is left to do; choose trainer=train, or rollout=vllm",
        )
        require(
            trainer.learns or self.tracking.rollouts,
            "tracking.rollouts",
            self.tracking.rollouts,
            "trainer=rollout_only would leave nothing behind; set it to true",
        )
        require(
            trainer.eval_every == 0 or (trainer.learns and not replays),
            "trainer.eval_every",
            trainer.eval_every,
            f"{lacks}, so no held-out prompt is scored; set it to 0 and use ballast eval",
        )

    def _check_learner(self) -> None:
        """Check the learner against the other sections."""
        require(
            all(1 <= step <= self.trainer.total_steps for step in self.learner.profile.steps),
            "learner.profile.steps",
            self.learner.profile.steps,
            f"must be steps of the run, 1 to trainer.total_steps={self.trainer.total_steps}",
        )
        require(
            not self.reference.offload_params or self.reference.stage(self.learner) == 3,
            "reference.offload_params",
            self.reference.offload_params,
            "needs reference.zero_stage=3; other stages keep all weights on every rank",
        )
        adapter, transport = self.model.adapter, self.rollout.named_transport
        carriers = any_of(row for row in TRANSPORTS if row.carries_adapter)
        require(
            not adapter.trains
            or adapter.publish == "merged"
            or transport is None
            or transport.carries_adapter,
            "model.adapter.publish",
            adapter.publish,
            f"goes by rollout.transport={carriers}, not {self.rollout.transport}; "
            "choose one of them, or publish=merged",
        )
        sequences = self.sequences_per_update
        require(
            sequences >= self.learner.num_data_parallel,
            "learner.num_ranks",
            self.learner.num_ranks,
            f"exceeds the {sequences} sequences of one optimizer update (ranks that share their "
            f"micro-batches count once: {self.learner.num_data_parallel})",
        )
        self._check_critic()

    def _check_critic(self) -> None:
        """Check the critic against the other sections."""
        critic, prompts = self.critic, self.trainer.prompts_per_step
        require(
            self.longest <= critic.token_budget,
            "critic.token_budget",
            critic.token_budget,
            f"is below the longest sequence, {self.longest} tokens; raise it",
        )
        require(
            prompts % critic.updates_per_step == 0,
            "critic.updates_per_step",
            critic.updates_per_step,
            f"must divide trainer.prompts_per_step={prompts}, so that groups stay whole",
        )
        sequences = self.sequences_per_step // critic.updates_per_step
        require(
            sequences >= critic.num_ranks,
            "critic.num_ranks",
            critic.num_ranks,
            f"exceeds the {sequences} sequences of one optimizer update",
        )
        require(
            critic.warmup_steps < self.trainer.total_steps,
            "critic.warmup_steps",
            critic.warmup_steps,
            f"leaves none of trainer.total_steps={self.trainer.total_steps} to the policy; lower "
            "it",
        )
        if self.cluster.critic.shared:
            require(
                critic.num_ranks <= self.learner.num_ranks,
                "critic.num_ranks",
                critic.num_ranks,
                f"exceeds learner.num_ranks={self.learner.num_ranks}, beside which the ranks of a "
                "shared critic stand; lower it or set cluster.critic.placement=dedicated",
            )
            require(
                self.cluster.learner.num_gpus <= 1,
                "cluster.learner.num_gpus",
                self.cluster.learner.num_gpus,
                "more than one GPU can't be shared with the critic; set "
                "cluster.critic.placement=dedicated",
            )

    def _check_turns(self) -> None:
        """Check that colocated engines can sleep while the learner works.

        Each engine runs on the GPU of its own learner rank.
        """
        require(
            self.schedule.max_staleness == 0,
            "schedule.max_staleness",
            self.schedule.max_staleness,
            "colocated engines sleep while the learner works and can't sample ahead; set it to 0, "
            "or choose a cluster= with cluster.colocated=false",
        )
        require(
            self.rollout.tensor_parallel_size == 1,
            "rollout.tensor_parallel_size",
            self.rollout.tensor_parallel_size,
            "a colocated engine has the GPU of one learner rank; set it to 1, or choose a cluster= "
            "with cluster.colocated=false",
        )
        require(
            self.rollout.max_engines in (None, self.rollout.num_engines),
            "rollout.max_engines",
            self.rollout.max_engines,
            "a colocated engine has the GPU of one learner rank, and none joins; set it to null, "
            "or choose a cluster= with cluster.colocated=false",
        )
        require(
            self.rollout.num_engines == self.learner.num_ranks,
            "rollout.num_engines",
            self.rollout.num_engines,
            f"colocated engines and learner ranks pair up; set it to learner.num_ranks = "
            f"{self.learner.num_ranks}",
        )
        transport = self.rollout.named_transport
        require(
            transport is None or not transport.uses_nccl,
            "rollout.transport",
            self.rollout.transport,
            "NCCL refuses two processes on one GPU, and colocated ones are; set it to auto or ipc",
        )

    @property
    def environments(self) -> dict[str, EnvironmentConfig]:
        """The run's environment under "", others under the key of their source or held-out set."""
        sources = {f"data.sources.{each.name}": each.environment for each in self.data.sources}
        sets = {
            f"evaluation.sets.{name}": each.environment
            for name, each in self.evaluation.sets.items()
        }
        own = {key: each for key, each in (sources | sets).items() if each is not None}
        return {"": self.environment, **own}

    @property
    def longest(self) -> int:
        """Tokens of the longest trajectory that may train."""
        return self.data.max_prompt_tokens + self.rollout.sampling.max_new_tokens

    @property
    def sequences_per_step(self) -> int:
        """Trajectories that one step trains on."""
        return self.trainer.prompts_per_step * self.rollout.samples_per_prompt

    @property
    def sequences_per_update(self) -> int:
        """Trajectories that one optimizer step trains on."""
        return self.sequences_per_step // self.trainer.updates_per_step
