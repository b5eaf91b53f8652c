"""Placement of the processes: the cluster, the share of each process, the limits of calls.

Read by the driver. Launches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from conf.schema.checks import choose, require


@dataclass(kw_only=True)
class RoleConfig:
    """Resources of one process of a role."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    threads: int = 1  # OMP_NUM_THREADS

    def check(self, key: str) -> None:
        """Raise a ValueError for an impossible value that stands under `key`."""
        require(self.num_cpus >= 0, f"{key}.num_cpus", self.num_cpus, "must not be negative")
        require(self.num_gpus >= 0, f"{key}.num_gpus", self.num_gpus, "must not be negative")
        require(self.threads >= 1, f"{key}.threads", self.threads, "must be at least 1")


@dataclass(kw_only=True)
class PlacedRoleConfig(RoleConfig):
    """Resources of one process of a role, and how Ray divides the processes among nodes."""

    strategy: str = "PACK"  # as few nodes as possible | SPREAD: as many as possible | STRICT_...

    def check(self, key: str) -> None:
        """Raise a ValueError for an impossible value that stands under `key`."""
        super().check(key)
        choose(f"{key}.strategy", self.strategy, ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"))


@dataclass(kw_only=True)
class CriticRoleConfig(RoleConfig):
    """Placement of the critic, which computes and learns values; algorithms with a critic only."""

    placement: str = "shared"  # with the learner, taking turns | dedicated: resources of its own

    def check(self, key: str) -> None:
        """Raise a ValueError for an impossible value that stands under `key`."""
        super().check(key)
        choose(f"{key}.placement", self.placement, ("shared", "dedicated"))

    @property
    def shared(self) -> bool:
        """True where the critic's rank r runs beside the learner's rank r, on half of the GPU."""
        return self.placement == "shared"


@dataclass(kw_only=True)
class TimeoutConfig:
    """Longest duration of each remote call, in seconds, before the run stops and names the call."""

    start_s: float = 600.0
    request_s: float = 600.0  # two tokens of a running response, two steps of a busy engine
    environment_s: float = 600.0  # of one sample, beside what the engine draws for it
    engine_s: float = 120.0  # an engine or reward worker without an answer, before it is killed
    place_s: float = 120.0  # an engine that joins, or whose node is gone, finds a place
    train_s: float = 1800.0
    publish_s: float = 300.0
    checkpoint_s: float = 1800.0

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        for name, value in vars(self).items():
            require(value > 0, f"cluster.timeouts.{name}", value, "must be positive")


@dataclass(kw_only=True)
class ClusterConfig:
    """Ray cluster of a run, and the share of the cluster that each role's process takes."""

    name: str = MISSING
    address: str | None = None  # a running Ray cluster; null: a Ray of this run's own
    num_cpus: int = 4  # logical CPUs of a Ray of this run's own
    object_store_gib: float = 0.5
    metrics_port: int | None = None  # of a Ray of this run's own, for Prometheus; null: Ray chooses
    num_nodes: int = 1
    gpus_per_node: int | None = None  # null: only Ray knows, once it runs
    gpu_memory_gib: float | None = None  # of one GPU; null: not checked
    autoscaled: bool = False  # nodes may be added while a run waits for its placement
    colocated: bool = False  # engine k and learner rank k share a GPU and take turns on it
    reward_cpus: float = 1.0  # of a reward worker, which so never stands on a head without CPUs
    reward_gpus: float = 0.0  # of a reward worker, for a reward model; beside those of other roles
    rollout: PlacedRoleConfig = field(default_factory=PlacedRoleConfig)
    # Reference and critic stand where the learner's strategy puts them, together with the learner.
    learner: PlacedRoleConfig = field(default_factory=PlacedRoleConfig)
    reference: RoleConfig = field(default_factory=RoleConfig)
    critic: CriticRoleConfig = field(default_factory=CriticRoleConfig)
    judge: PlacedRoleConfig = field(default_factory=PlacedRoleConfig)  # of `reward.engine`
    timeouts: TimeoutConfig = field(default_factory=TimeoutConfig)

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        for role in ("rollout", "learner", "reference", "critic", "judge"):
            getattr(self, role).check(f"cluster.{role}")
        require(
            self.judge.num_gpus in (0, 1),
            "cluster.judge.num_gpus",
            self.judge.num_gpus,
            "must be 1, a whole GPU for each device of an engine, or 0 for CPUs",
        )
        self.timeouts.check()
        require(self.num_nodes >= 1, "cluster.num_nodes", self.num_nodes, "must be at least 1")
        for name in ("gpus_per_node", "gpu_memory_gib"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"cluster.{name}", value, "must not be negative")
        for name in ("reward_cpus", "reward_gpus"):
            value = getattr(self, name)
            require(value >= 0, f"cluster.{name}", value, "must not be negative")
        together = self.rollout.num_gpus + self.learner.num_gpus + self.reference.num_gpus
        require(
            not self.colocated or together <= 1 + 1e-6,
            "cluster.colocated",
            self.colocated,
            f"the roles ask for {together:g} of the GPU that they share; lower "
            "cluster.rollout.num_gpus, cluster.learner.num_gpus or cluster.reference.num_gpus",
        )
