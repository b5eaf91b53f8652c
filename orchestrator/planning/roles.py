"""List the roles of a run as a table: the processes of each, their resources, and their places.

Arithmetic on configuration and algorithm, in the driver; starts nothing and never calls Ray.
Placement, memory, plan, doctor, rehearsal and the cluster's launch read these rows. A role that the
run does not need has no row.

There is no separate actor: at the start of a step the learner holds the weights of pi_old, so its
ranks compute those log-probs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from algorithms.algorithm import Algorithm
from conf.schema import TrainConfig


class Place(Enum):
    """Places of the processes of a role."""

    OWN = auto()  # bundles of the role's own
    TURNS = auto()  # bundle k, which engine k, learner rank k and reference rank k take in turn
    BESIDE_LEARNER = auto()  # rank r in the bundle of learner rank r, on a share of its GPU
    IN_LEARNER = auto()  # no process: the learner's ranks play the role
    ANYWHERE = auto()  # no bundle: takes CPUs and GPUs of any node


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRole:
    """One role of a run before anything is started.

    Example: two learner ranks behind one engine, with a critic beside them, of which each takes
    half of the GPU of their bundle:

        PlannedRole(name="learner", place=Place.OWN, num_processes=2, first_bundle=1,
                    num_cpus=1.0, num_gpus=0.5, bundle_gpus=1.0, threads=4, trains=True)

    Attributes:
        name: rollout, reward, judge, learner, actor, reference or critic.
        place: of its processes.
        num_processes: Ray actors, of which number k runs in bundle `first_bundle` + k.
        first_bundle: of the run's placement group.
        num_cpus: of one process.
        num_gpus: of one process; of one device of an engine.
        bundle_gpus: GPUs that one process (or device) adds to its bundle.
        devices: of one process; more than 1 for an engine with tensor parallelism.
        threads: OMP_NUM_THREADS of one process.
        trains: True where the role has an optimizer, and so moments in memory and in checkpoints.
        note: words about the role's place in the plan.
    """

    name: str
    place: Place
    num_processes: int = 0
    first_bundle: int = 0
    num_cpus: float = 0.0
    num_gpus: float = 0.0
    bundle_gpus: float = 0.0
    devices: int = 1
    threads: int = 1
    trains: bool = False
    note: str = ""

    @property
    def bundles(self) -> range:
        """Bundle of every process, by number; empty where the processes have none."""
        if self.place in (Place.IN_LEARNER, Place.ANYWHERE):
            return range(0)
        return range(self.first_bundle, self.first_bundle + self.num_processes)

    @property
    def title(self) -> str:
        """Name and note, such as `critic (beside the learner)`."""
        return f"{self.name} ({self.note})" if self.note else self.name


def roles_of(config: TrainConfig, algorithm: Algorithm) -> tuple[PlannedRole, ...]:
    """Return the roles of a run, in the order in which their bundles follow each other."""
    roles: list[PlannedRole] = []
    if not config.rollout.replay.replays:
        roles += [_rollout(config), _reward(config)]
        if config.reward.engine.model is not None:
            roles.append(_judge(config))
    if config.trainer.learns:
        roles.append(_learner(config, algorithm))
        if config.trainer.num_updates > 1 or "old_logprobs" in algorithm.credit_columns:
            note = "the learner at the start of a step"
            roles.append(PlannedRole(name="actor", place=Place.IN_LEARNER, note=note))
        if "ref_logprobs" in algorithm.required_columns:
            roles.append(_reference(config, algorithm))
        if algorithm.needs_critic:
            roles.append(_critic(config, roles))
    return tuple(roles)


def role_named(roles: Sequence[PlannedRole], name: str) -> PlannedRole | None:
    """Return the row of a role, or None where the run has no such role."""
    return next((role for role in roles if role.name == name), None)


def _place(config: TrainConfig) -> Place:
    """Return the place of a role that is not a critic."""
    return Place.TURNS if config.cluster.colocated else Place.OWN


def _after(config: TrainConfig, ranks: int) -> int:
    """Return a role's first bundle, after engines, judges and `ranks`; colocated roles share all.

    Judges come before the ranks, so that a run without some of the ranks has no gap.
    """
    engines = config.rollout.num_engines
    return 0 if config.cluster.colocated else engines + _num_judges(config) + ranks


def _num_judges(config: TrainConfig) -> int:
    engine = config.reward.engine
    runs = engine.model is not None and not config.rollout.replay.replays
    return engine.num_engines if runs else 0


def _rollout(config: TrainConfig) -> PlannedRole:
    role = config.cluster.rollout
    return PlannedRole(
        name="rollout",
        place=_place(config),
        num_processes=config.rollout.num_engines,
        num_cpus=role.num_cpus,
        num_gpus=role.num_gpus,
        bundle_gpus=role.num_gpus,
        devices=config.rollout.tensor_parallel_size,
        threads=role.threads,
    )


def _reward(config: TrainConfig) -> PlannedRole:
    gpus = config.cluster.reward_gpus
    return PlannedRole(
        name="reward",
        place=Place.ANYWHERE,
        num_processes=config.reward.num_workers,
        num_cpus=config.cluster.reward_cpus,
        num_gpus=gpus,
        note=f"{gpus:g} GPU each" if gpus else "",
    )


def _judge(config: TrainConfig) -> PlannedRole:
    """Return the engines of a judge; beside colocated roles they have bundles of their own."""
    role, engine = config.cluster.judge, config.reward.engine
    return PlannedRole(
        name="judge",
        place=Place.OWN,
        num_processes=engine.num_engines,
        first_bundle=config.rollout.num_engines,
        num_cpus=role.num_cpus,
        num_gpus=role.num_gpus,
        bundle_gpus=role.num_gpus,
        devices=engine.tensor_parallel_size,
        threads=role.threads,
    )


def _learner(config: TrainConfig, algorithm: Algorithm) -> PlannedRole:
    role = config.cluster.learner
    halved = algorithm.needs_critic and config.cluster.critic.shared
    return PlannedRole(
        name="learner",
        place=_place(config),
        num_processes=config.learner.num_ranks,
        first_bundle=_after(config, 0),
        num_cpus=role.num_cpus,
        num_gpus=role.num_gpus / 2 if halved else role.num_gpus,
        bundle_gpus=_learner_gpus(config, algorithm),
        threads=role.threads,
        trains=True,
    )


def _learner_gpus(config: TrainConfig, algorithm: Algorithm) -> float:
    """Return what a learner rank adds to its bundle: the rest of a GPU too, where none can use it.

    Ray chooses a node by the sum of its GPUs: where eight ranks leave a quarter of each GPU free,
    Ray sees room for two bundles more, and waits for them without end.
    """
    cluster, own = config.cluster, config.cluster.learner.num_gpus
    beside = cluster.reference.num_gpus if _references_beside(config, algorithm) else 0.0
    free = 1 - own - beside
    shapes = [gpus for gpus in (own + beside, cluster.rollout.num_gpus) if gpus]
    useless = bool(shapes) and 0 < free < min(shapes) - 1e-6
    return 1 - beside if useless and not cluster.colocated else own


def _references_beside(config: TrainConfig, algorithm: Algorithm) -> bool:
    """Return True where a reference rank shares the GPU of a learner rank."""
    cluster, frozen = config.cluster, not config.model.adapter.trains
    together = cluster.learner.num_gpus + cluster.reference.num_gpus
    scores = "ref_logprobs" in algorithm.required_columns
    on_gpus = cluster.learner.num_gpus > 0 and cluster.reference.num_gpus > 0
    return scores and frozen and on_gpus and together <= 1 + 1e-6 and not cluster.colocated


def _reference(config: TrainConfig, algorithm: Algorithm) -> PlannedRole:
    """Return the frozen policy; beside an adapter the learner still holds it."""
    if config.model.adapter.trains:
        note = "the learner with its adapter switched off"
        return PlannedRole(name="reference", place=Place.IN_LEARNER, note=note)
    role, ranks = config.cluster.reference, config.learner.num_ranks
    beside = _references_beside(config, algorithm)
    return PlannedRole(
        name="reference",
        place=Place.BESIDE_LEARNER if beside else _place(config),
        num_processes=ranks,
        first_bundle=_after(config, 0 if beside else ranks),
        num_cpus=role.num_cpus,
        num_gpus=role.num_gpus,
        bundle_gpus=role.num_gpus,
        threads=role.threads,
    )


def _critic(config: TrainConfig, before: Sequence[PlannedRole]) -> PlannedRole:
    role, shared = config.cluster.critic, config.cluster.critic.shared
    learner = config.cluster.learner
    return PlannedRole(
        name="critic",
        place=Place.BESIDE_LEARNER if shared else Place.OWN,
        num_processes=config.critic.num_ranks,
        first_bundle=_after(config, 0) if shared else max(other.bundles.stop for other in before),
        num_cpus=role.num_cpus,
        num_gpus=learner.num_gpus / 2 if shared else role.num_gpus,
        bundle_gpus=0.0 if shared else role.num_gpus,
        threads=role.threads,
        trains=True,
        note="beside the learner" if shared else "dedicated",
    )
