"""Start or join Ray, and place, launch and end the roles of a run on it.

Runs in the driver. Every process gets its node and its environment variables here; the work of the
processes is in `workers`. A role without a row in the plan of the run is not launched.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from algorithms.algorithm import Algorithm
from conf.schema import ClusterConfig, TrainConfig
from orchestrator.cluster import judges
from orchestrator.cluster.batch_keeper import BatchKeeper
from orchestrator.cluster.critic_group import CriticGroup
from orchestrator.cluster.nodes import describe_engines, engine_nodes
from orchestrator.cluster.places import Places, reserve
from orchestrator.cluster.policy_group import PolicyGroup
from orchestrator.fleet.colocation import sleep_engines
from orchestrator.fleet.concurrency import concurrency_of
from orchestrator.fleet.fleet import Fleet
from orchestrator.fleet.launcher import EngineLauncher
from orchestrator.fleet.pool import RolloutPool
from orchestrator.planning.engine_memory import engine_fraction
from orchestrator.planning.placement import check_resources
from orchestrator.planning.roles import Place, PlannedRole, role_named
from orchestrator.planning.settings import critic_settings, early_stop, policy_settings
from workers import USER_PATH_VARIABLE
from workers.calls import Call, bind
from workers.engines.judge.worker import JudgeWorker
from workers.learner.allocator import allocator_environment
from workers.learner.critic_worker import CriticWorker
from workers.learner.policy_worker import PolicyWorker
from workers.learner.rank_worker import RankWorker
from workers.reward.base import reads_images, takes_group
from workers.reward.worker import RewardWorker
from workers.rollout.limits import BoundedEnvironment
from workers.rollout.worker import RolloutWorker
from workers.spans import SpanReporter
from workers.worker_group import Pending, Placement, WorkerError, WorkerGroup, divide

RankT = TypeVar("RankT", bound=RankWorker)


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Running processes of a run, by role."""

    fleet: Fleet
    learner: PolicyGroup
    reference: PolicyGroup | None
    critic: CriticGroup | None

    @property
    def groups(self) -> list[WorkerGroup[SpanReporter]]:
        """Groups of all processes of the run, each group once."""
        groups: list[WorkerGroup[SpanReporter]] = [self.fleet.workers, self.fleet.rewards]
        groups += [role.workers for role in (self.learner, self.reference, self.critic) if role]
        # Where the learner scores as reference, the two are one group.
        return list({id(group): group for group in groups}.values())


def start_ray(config: ClusterConfig) -> None:
    """Join the named cluster, or start a Ray for this run alone on this machine."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # The calls of an engine that died are given up on purpose.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # At Ray's own choice, 15, any other program of this machine starves the workers.
    os.environ.setdefault("RAY_worker_niceness", "0")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if config.address is not None:
        ray.init(address=config.address, **common)
        return
    own: dict[str, Any] = {
        "address": "local",  # or Ray would join a cluster that happens to run on this machine
        "num_cpus": config.num_cpus,
        "object_store_memory": int(config.object_store_gib * 2**30),
        "include_dashboard": False,
        "_metrics_export_port": config.metrics_port,
        **common,
    }
    try:
        ray.init(**own)
    except Exception:  # on a slow machine Ray's own processes may miss their time limit once
        ray.shutdown()
        ray.init(**own)


class Cluster:
    """Owner of a run's processes: a context manager that ends all of them.

    Args:
        config: of the run.
        algorithm: decides what ranks compute.
        run_id: names the run in every trajectory.
        model_path: folder of the policy.
        critic_path: folder of the critic; None for the policy's.
        folder: of the run, for what scorers write; None where they are to write nothing.
    """

    def __init__(
        self,
        config: TrainConfig,
        algorithm: Algorithm,
        *,
        run_id: str,
        model_path: str,
        critic_path: str | None = None,
        folder: Path | None = None,
    ) -> None:
        self._config, self._algorithm = config, algorithm
        self._run_id, self._model_path = run_id, model_path
        self._critic_path = critic_path or model_path
        self._folder = None if folder is None else str(folder)
        self._groups: list[tuple[WorkerGroup[Any], Call[Any, None]]] = []
        self._places: Places | None = None
        self._user_path = os.pathsep.join(path for path in sys.path if path)
        self._judge_key: dict[str, str] = {}  # a variable of those that ask the run's own judge

    def __enter__(self) -> Cluster:
        start_ray(self._config.cluster)
        return self

    def __exit__(self, *exc: object) -> None:
        for group, last in reversed(self._groups):
            group.stop(last=last)
        if self._places is not None:
            with contextlib.suppress(RayError):  # what ended the run is what the user shall read
                self._places.give_back()
        ray.shutdown()

    def start_judges(self, scorer: Any, *, planned: Sequence[PlannedRole]) -> Any:
        """Start the engines of the run's own judge, before all other roles, if it has some.

        Args:
            scorer: built from `conf/reward`.
            planned: as in `launch`.

        Returns:
            The scorer that asks them, once all of them answer; without them `scorer` itself.
        """
        role = role_named(planned, "judge")
        if role is None:
            return scorer
        places = self._reserve(planned)
        assert places.judges is not None, "the role has bundles"
        self._judge_key = judges.make_key()
        env = {**self._env(role.threads), **self._judge_key}
        group = judges.launch(self._config, role, places.judges, env=env, folder=self._folder)
        self._groups.append((group, bind(JudgeWorker.close)))
        return judges.wait(self._config, group, scorer)

    def _reserve(self, planned: Sequence[PlannedRole]) -> Places:
        """Reserve the places of all roles, once."""
        if self._places is None:
            if not self._config.cluster.autoscaled:
                check_resources(self._config, planned)
            self._places = reserve(self._config, planned)
        return self._places

    def launch(
        self,
        *,
        environments: Mapping[str, BoundedEnvironment],
        scorer: Any,
        version: int,
        planned: Sequence[PlannedRole],
    ) -> Roles:
        """Start every role, and return when all of them answer.

        Args:
            environments: of `build_environments`.
            scorer: built from `conf/reward`; of `start_judges` where the run serves a judge.
            version: label of the weights that the engines load.
            planned: rows of `roles_of`; the first of them where the caller needs fewer roles.
        """
        config = self._config
        limit_s = config.cluster.timeouts.start_s
        places = self._reserve(planned)
        rewards = self._launch_rewards(role_named(planned, "reward"), scorer)
        launcher = EngineLauncher(
            config,
            run_id=self._run_id,
            model_path=self._model_path,
            environments=environments,
            scores_together=takes_group(scorer),
            images_for_reward=reads_images(scorer),
            early_stop=early_stop(config, self._algorithm),
            env=self._env(config.cluster.rollout.threads),
            placement=places.engines,
            gpu_fraction=engine_fraction(config, planned),
            nodes=places.nodes,
        )
        rollouts = launcher.launch_first()
        self._groups.append((rollouts, bind(RolloutWorker.shutdown)))
        learner = self._launch_policy("learner", role_named(planned, "learner"))
        scores = role_named(planned, "reference")
        reference = self._launch_policy("reference", scores)
        critic = self._launch_critic(role_named(planned, "critic"))
        # All processes import while the scorers are built. A scorer that a node can't build is
        # refused before any model is loaded.
        rewards.call(bind(RewardWorker.num_settled), timeout_s=limit_s)
        begin = bind(RolloutWorker.start, version, rewards)
        engines = rollouts.start(begin, timeout_s=limit_s)
        if config.cluster.colocated and len(learner):
            lost = self._failed_starts(engines)
            sleep_engines(rollouts.only(set(rollouts.ranks) - set(lost)), config)
        others = [self._connect(group) for group in (learner, reference, critic) if len(group)]
        for pending in others:
            pending.result()
        lost = self._failed_starts(engines)

        # With an adapter the learner still holds the policy that it started from.
        in_learner = scores is not None and scores.place is Place.IN_LEARNER
        without_adapter = self._policy(learner, base=True) if in_learner else None
        pool = RolloutPool(
            rollouts,
            silence_s=config.cluster.timeouts.engine_s,
            together=config.schedule.max_staleness == 0,
            concurrency=concurrency_of(config),
            keep=None if launcher.one_node else self._keeper(role_named(planned, "learner")).keep,
        )
        for number, failure in lost.items():
            pool.kill(number, str(failure))
        return Roles(
            fleet=Fleet(launcher=launcher, workers=rollouts, pool=pool, rewards=rewards),
            learner=self._policy(learner),
            reference=self._policy(reference) if len(reference) else without_adapter,
            critic=CriticGroup(critic, train_s=config.cluster.timeouts.train_s)
            if len(critic)
            else None,
        )

    def _keeper(self, learner: PlannedRole | None) -> BatchKeeper:
        """Return the keeper on the node of the learner's first rank, or on the driver's."""
        own: str = ray.get_runtime_context().get_node_id()
        return BatchKeeper(own if learner is None else self.first_node)

    def _failed_starts(self, engines: Pending[str]) -> dict[int, WorkerError]:
        """Return why engines did not start; they are started again while the others sample.

        Raises:
            WorkerError: too few started.
        """
        started, failed = divide(engines.outcomes())
        if failed and len(started) < self._config.rollout.min_engines:
            raise next(iter(failed.values()))
        return failed

    @property
    def first_node(self) -> str:
        """Id of the node of the learner's first rank; where nothing learns, of an engine."""
        assert self._places is not None, "launch comes first"
        return self._places.nodes[0]

    def describe_engines(self) -> str:
        """Return a line that names the node of every engine."""
        assert self._places is not None, "launch comes first"
        nodes = engine_nodes(self._places.engines, self._config.rollout.num_engines)
        return describe_engines(nodes)

    def _policy(self, ranks: WorkerGroup[PolicyWorker], *, base: bool = False) -> PolicyGroup:
        return PolicyGroup(
            ranks,
            train_s=self._config.cluster.timeouts.train_s,
            ranks_per_plan=self._config.learner.sequence_parallel_size,
            base=base,
        )

    def _env(self, threads: int) -> dict[str, str]:
        return {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            USER_PATH_VARIABLE: self._user_path,
        }

    def _rank_env(self, role: PlannedRole) -> dict[str, str]:
        """Return the variables of a rank, with those of its allocator on CPUs."""
        allocator = {} if role.num_gpus > 0 else allocator_environment(os.environ)
        return self._env(role.threads) | allocator

    def _launch_rewards(self, role: PlannedRole | None, scorer: Any) -> WorkerGroup[RewardWorker]:
        reward = self._config.reward
        group = WorkerGroup.launch(
            "reward",
            RewardWorker,
            num_workers=role.num_processes if role else 0,
            arguments=lambda rank: {
                "scorer": scorer,
                "num_processes": reward.num_processes,
                "timeout_s": reward.timeout_s,
                "start_s": reward.start_s,
                "folder": self._folder,
                "max_memory_mib": reward.max_memory_mib,
            },
            env=lambda rank: {**self._env(1), **self._judge_key},
            num_cpus=role.num_cpus if role else 0,
            num_gpus=role.num_gpus if role else 0,
            max_concurrency=1000,  # calls that wait; the pool bounds those that are scored
            restarts=True,
            retries=1,
        )
        self._groups.append((group, bind(RewardWorker.close)))
        return group

    def _launch_policy(self, name: str, role: PlannedRole | None) -> WorkerGroup[PolicyWorker]:
        config = self._config
        trains = role is not None and role.trains
        more = {
            "run_id": self._run_id,
            "settings": policy_settings(config, self._model_path, trains=trains),
            "temperature": config.rollout.sampling.temperature,
        }
        return self._launch_ranks(name, PolicyWorker, role, more)

    def _launch_critic(self, role: PlannedRole | None) -> WorkerGroup[CriticWorker]:
        more = {"settings": critic_settings(self._config, self._critic_path)}
        return self._launch_ranks("critic", CriticWorker, role, more)

    def _launch_ranks(
        self, name: str, worker: type[RankT], role: PlannedRole | None, more: Mapping[str, Any]
    ) -> WorkerGroup[RankT]:
        """Start the ranks of a role, each in its bundle; none where the role has no process."""
        if role is None or not role.bundles:
            return WorkerGroup(name, [])
        places = self._places
        assert places is not None, "reserve comes first"
        group = WorkerGroup.launch(
            name,
            worker,
            num_workers=role.num_processes,
            arguments=lambda rank: {
                "rank": rank,
                "world_size": role.num_processes,
                "algorithm": self._algorithm,
                "timeout_s": self._config.cluster.timeouts.train_s,
                **more,
            },
            env=lambda rank: self._rank_env(role),
            placement=Placement(
                group=places.ranks,
                bundles=places.of(role),
                num_cpus=role.num_cpus,
                num_gpus=role.num_gpus,
            ),
        )
        self._groups.append((group, bind(RankWorker.close)))
        return group

    def _connect(self, group: WorkerGroup[RankWorker]) -> Pending[None]:
        """Open a port on rank 0, and let every rank connect to it and load the model."""
        limit_s = self._config.cluster.timeouts.start_s
        address = group.call_first(bind(RankWorker.open_port), timeout_s=limit_s)
        return group.start(bind(RankWorker.start, address), timeout_s=limit_s)
