"""The typed schema of a training configuration: names, types, units and ranges of every key.

Hydra merges the YAML groups of this package into `TrainConfig`, so a key that is not written here
fails at composition. `OmegaConf.to_object` then builds these dataclasses; each section's `check`
names the value that can't be and the remedy, and `TrainConfig.check` calls them all and adds what
several sections must agree on.
Nothing here imports torch, ray or an engine: a configuration is validated before anything starts.

Sections typed `Any` hold `_target_` nodes (the dotted path is the registry) and are built by
`hydra.utils.instantiate`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


def _require(condition: bool, key: str, value: object, remedy: str) -> None:
    if not condition:
        raise ValueError(f"{key}={value!r}: {remedy}")


def _choose(key: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, key, value, f"must be one of {', '.join(choices)}")


@dataclass(kw_only=True)
class TrainerConfig:
    """How long to train, how large a step is, and what happens every so many steps."""

    total_steps: int = 25
    prompts_per_step: int = 16  # groups per step
    updates_per_step: int = 1  # optimizer steps that share one rollout batch
    eval_every: int = 0  # steps; 0: only before the first and after the last step
    checkpoint_every: int = 10  # steps; 0: only at the end
    keep_checkpoints: int = 2  # the newest ones; 0 keeps all
    export: bool = True  # write the final policy as a Hugging Face folder

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        for name in ("total_steps", "prompts_per_step", "updates_per_step"):
            value = getattr(self, name)
            _require(value >= 1, f"trainer.{name}", value, "must be at least 1")
        for name in ("eval_every", "checkpoint_every", "keep_checkpoints"):
            value = getattr(self, name)
            _require(value >= 0, f"trainer.{name}", value, "must not be negative")
        _require(
            self.prompts_per_step % self.updates_per_step == 0,
            "trainer.updates_per_step",
            self.updates_per_step,
            f"must divide trainer.prompts_per_step={self.prompts_per_step}, "
            "so that groups stay whole and every update is the same size",
        )


@dataclass(kw_only=True)
class ModelConfig:
    """The policy: a Hugging Face folder, or a command of this project that builds one."""

    name: str = MISSING
    path: str | None = None  # folder with config.json, safetensors and a tokenizer
    build: Any = None  # `_target_` of a function that returns such a folder (cached)
    dtype: str = "float32"  # of the learner's forward and backward; weights stay float32

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        _choose("model.dtype", self.dtype, ("float32", "bfloat16"))
        _require(
            (self.path is None) != (self.build is None),
            "model.path",
            self.path,
            "give either model.path (a Hugging Face folder) or model.build, not both or none",
        )


@dataclass(kw_only=True)
class DataConfig:
    """Prompts in Parquet: which files, and what their columns are called."""

    name: str = MISSING
    train_path: str | None = None  # a Parquet file or a folder of them
    eval_path: str | None = None
    build: Any = None  # `_target_` of a function that generates both into a folder
    prompt_column: str = "prompt"  # string, or list of {role, content} messages
    ground_truth_column: str = "ground_truth"
    max_prompt_tokens: int = 1024
    shuffle: bool = True
    eval_limit: int = 0  # held-out prompts used; 0: all

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        _require(
            (self.train_path is None) != (self.build is None),
            "data.train_path",
            self.train_path,
            "give either data.train_path (Parquet) or data.build, not both or none",
        )
        _require(
            self.max_prompt_tokens >= 1,
            "data.max_prompt_tokens",
            self.max_prompt_tokens,
            "must be at least 1",
        )
        _require(self.eval_limit >= 0, "data.eval_limit", self.eval_limit, "must not be negative")


@dataclass(kw_only=True)
class RewardConfig:
    """Who scores a finished trajectory, in how many killable processes, for how long at most."""

    scorer: Any = MISSING
    num_workers: int = 1  # Ray actors
    num_processes: int = 1  # scoring processes of each
    timeout_s: float = 10.0  # per sample; the process is killed when it is over

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        for name in ("num_workers", "num_processes"):
            value = getattr(self, name)
            _require(value >= 1, f"reward.{name}", value, "must be at least 1")
        _require(self.timeout_s > 0, "reward.timeout_s", self.timeout_s, "must be positive")


@dataclass(kw_only=True)
class SamplingConfig:
    """How tokens are drawn."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: the whole vocabulary
    max_new_tokens: int = 16
    stop: list[str] = field(default_factory=list)

    def check(self, key: str) -> None:
        """Check the values that stand under `key`."""
        _require(self.temperature >= 0, f"{key}.temperature", self.temperature, "must be >= 0")
        _require(0 < self.top_p <= 1, f"{key}.top_p", self.top_p, "must be in (0, 1]")
        _require(self.top_k >= 0, f"{key}.top_k", self.top_k, "must be >= 0; 0 turns it off")
        _require(
            self.max_new_tokens >= 1, f"{key}.max_new_tokens", self.max_new_tokens, "must be >= 1"
        )


@dataclass(kw_only=True)
class RolloutConfig:
    """The rollout engines (vLLM) and what they sample."""

    num_engines: int = 1
    tensor_parallel_size: int = 1
    samples_per_prompt: int = 8  # the group size
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    eval_sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0))
    eval_samples_per_prompt: int = 1
    dtype: str = "float32"  # of the engine's weights
    max_model_len: int = 128  # prompt and response, tokens
    max_num_seqs: int = 128  # decoded together by one engine
    kv_cache_gib: float = 0.25  # per engine
    transport: str = "shm"  # weight publication: shm, gloo, nccl, ipc
    probe_tolerance: float = 1e-4  # largest |learner - engine| probe log-prob in float32
    engine_kwargs: dict[str, Any] = field(default_factory=dict)  # raw, to vLLM

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        for name in (
            "num_engines",
            "tensor_parallel_size",
            "samples_per_prompt",
            "eval_samples_per_prompt",
            "max_num_seqs",
        ):
            value = getattr(self, name)
            _require(value >= 1, f"rollout.{name}", value, "must be at least 1")
        _choose("rollout.dtype", self.dtype, ("float32", "bfloat16", "float16"))
        _choose("rollout.transport", self.transport, ("shm", "gloo", "nccl", "ipc"))
        self.sampling.check("rollout.sampling")
        self.eval_sampling.check("rollout.eval_sampling")
        _require(self.kv_cache_gib > 0, "rollout.kv_cache_gib", self.kv_cache_gib, "must be > 0")
        _require(
            self.sampling.temperature > 0,
            "rollout.sampling.temperature",
            self.sampling.temperature,
            "training samples need a positive temperature; greedy belongs to eval_sampling",
        )
        for name in ("sampling", "eval_sampling"):
            new_tokens = getattr(self, name).max_new_tokens
            _require(
                new_tokens < self.max_model_len,
                f"rollout.{name}.max_new_tokens",
                new_tokens,
                f"leaves no room for a prompt within rollout.max_model_len={self.max_model_len}",
            )


@dataclass(kw_only=True)
class OptimizerConfig:
    """The optimizer and its learning rate."""

    name: str = "adamw"
    lr: float = 1e-6
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0  # optimizer steps taken

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        _choose("learner.optimizer.name", self.name, ("adamw", "sgd"))
        _choose("learner.optimizer.schedule", self.schedule, ("constant", "linear", "cosine"))
        for name in ("lr", "eps", "max_grad_norm"):
            value = getattr(self, name)
            _require(value > 0, f"learner.optimizer.{name}", value, "must be positive")
        for name in ("weight_decay", "warmup_steps"):
            value = getattr(self, name)
            _require(value >= 0, f"learner.optimizer.{name}", value, "must not be negative")


@dataclass(kw_only=True)
class LearnerConfig:
    """The policy under DeepSpeed ZeRO: ranks, stage, memory, optimizer."""

    num_ranks: int = 1
    zero_stage: int = 0
    token_budget: int = 2048  # tokens of a packed micro-batch, a hard limit
    attention: str = "varlen_sdpa"
    gradient_checkpointing: bool = False
    head_chunk: int | None = None  # rows of [chunk, vocabulary] held at a time; null: 64 MiB
    offload_optimizer: bool = False  # optimizer state in host memory; ZeRO 1 to 3
    offload_params: bool = False  # parameters in host memory; ZeRO 3
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)  # raw, merged over ours

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        _require(self.num_ranks >= 1, "learner.num_ranks", self.num_ranks, "must be at least 1")
        _require(
            self.zero_stage in (0, 1, 2, 3),
            "learner.zero_stage",
            self.zero_stage,
            "must be 0, 1, 2 or 3",
        )
        for name in ("token_budget", "head_chunk"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"learner.{name}", value, "must be at least 1")
        _require(
            len(self.optimizer.betas) == 2,
            "learner.optimizer.betas",
            self.optimizer.betas,
            "must be two numbers",
        )
        self.optimizer.check()
        _choose("learner.attention", self.attention, ("varlen_sdpa", "flash_attention_2"))


@dataclass(kw_only=True)
class RoleConfig:
    """What one process of a role is given."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    threads: int = 1  # OMP_NUM_THREADS

    def check(self, key: str) -> None:
        """Check the values that stand under `key`."""
        _require(self.num_cpus >= 0, f"{key}.num_cpus", self.num_cpus, "must not be negative")
        _require(self.num_gpus >= 0, f"{key}.num_gpus", self.num_gpus, "must not be negative")
        _require(self.threads >= 1, f"{key}.threads", self.threads, "must be at least 1")


@dataclass(kw_only=True)
class ActorRoleConfig:
    """Where pi_old is evaluated."""

    placement: str = "shared"  # in the learner's processes, which hold the same weights

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        _choose("cluster.actor.placement", self.placement, ("shared",))


@dataclass(kw_only=True)
class TimeoutConfig:
    """The longest that a remote call may take, in seconds, before the run stops and names it."""

    start_s: float = 600.0
    step_s: float = 600.0  # a whole batch of rollouts without one finished group
    train_s: float = 1800.0
    publish_s: float = 300.0
    checkpoint_s: float = 1800.0

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        for name, value in vars(self).items():
            _require(value > 0, f"cluster.timeouts.{name}", value, "must be positive")


@dataclass(kw_only=True)
class ClusterConfig:
    """Which Ray cluster, and what every role's process takes of it."""

    name: str = MISSING
    address: str | None = None  # a running Ray cluster; null: a Ray of this run's own
    num_cpus: int = 4  # logical CPUs of a Ray of this run's own
    object_store_gib: float = 0.5
    placement_strategy: str = "PACK"
    rollout: RoleConfig = field(default_factory=RoleConfig)
    learner: RoleConfig = field(default_factory=RoleConfig)
    reference: RoleConfig = field(default_factory=RoleConfig)
    actor: ActorRoleConfig = field(default_factory=ActorRoleConfig)
    timeouts: TimeoutConfig = field(default_factory=TimeoutConfig)

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        for role in ("rollout", "learner", "reference"):
            getattr(self, role).check(f"cluster.{role}")
        self.actor.check()
        self.timeouts.check()
        _choose(
            "cluster.placement_strategy",
            self.placement_strategy,
            ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"),
        )


@dataclass(kw_only=True)
class ScheduleConfig:
    """How far generation may run ahead of learning."""

    name: str = MISSING
    max_staleness: int = 0  # policy versions between sampling and training; 0: synchronous
    max_refill_rounds: int = 10  # batches sampled, at most, to fill one whose groups were filtered

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        _require(
            self.max_staleness >= 0,
            "schedule.max_staleness",
            self.max_staleness,
            "must not be negative",
        )
        _require(
            self.max_refill_rounds >= 1,
            "schedule.max_refill_rounds",
            self.max_refill_rounds,
            "must be at least 1",
        )


@dataclass(kw_only=True)
class TrackingConfig:
    """Where metrics and rollouts go. `metrics.jsonl` is always written."""

    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = "ballast"
    rollouts: bool = True  # every step's trajectories as Parquet


@dataclass(kw_only=True)
class TrainConfig:
    """A whole run."""

    run_name: str = "run"
    output_dir: str = "runs"
    seed: int = 0
    resume: str = "never"  # never: the folder must be new; auto: go on from its last checkpoint
    dry_run: bool = False
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    algorithm: Any = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    environment: Any = MISSING
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def check(self) -> None:
        """Check every section, then what they share.

        Raises:
            ValueError: on the first value that can't be; names key, value and remedy.
        """
        for section in vars(self).values():
            if hasattr(section, "check"):
                section.check()
        _choose("resume", self.resume, ("never", "auto"))
        longest = self.data.max_prompt_tokens + self.rollout.sampling.max_new_tokens
        _require(
            longest <= self.rollout.max_model_len,
            "rollout.max_model_len",
            self.rollout.max_model_len,
            f"is below data.max_prompt_tokens + rollout.sampling.max_new_tokens = {longest}; "
            "raise it or lower one of those",
        )
        _require(
            longest <= self.learner.token_budget,
            "learner.token_budget",
            self.learner.token_budget,
            f"is below the longest sequence, {longest} tokens; raise it",
        )
        sequences = self.sequences_per_update
        _require(
            sequences >= self.learner.num_ranks,
            "learner.num_ranks",
            self.learner.num_ranks,
            f"exceeds the {sequences} sequences of one optimizer update",
        )

    @property
    def sequences_per_step(self) -> int:
        """Trajectories that one step trains on."""
        return self.trainer.prompts_per_step * self.rollout.samples_per_prompt

    @property
    def sequences_per_update(self) -> int:
        """Trajectories that one optimizer step trains on."""
        return self.sequences_per_step // self.trainer.updates_per_step
