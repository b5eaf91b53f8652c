"""Ray and the roles on it: start or join, place, launch, take down.

Everything that says where a process runs and with what environment is here; what the processes do
is not. A role that the algorithm does not need is not launched.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import placement_group_table
from ray.util.placement_group import placement_group, remove_placement_group

from algorithms.algorithm import Algorithm
from conf.schema import ClusterConfig, TrainConfig
from orchestrator.cluster.batch_keeper import BatchKeeper
from orchestrator.cluster.critic_group import CriticGroup
from orchestrator.cluster.nodes import describe_engines, engine_nodes
from orchestrator.cluster.policy_group import PolicyGroup
from orchestrator.fleet.colocation import sleep_engines
from orchestrator.fleet.concurrency import concurrency_of
from orchestrator.fleet.fleet import Fleet
from orchestrator.fleet.launcher import EngineLauncher
from orchestrator.fleet.pool import RolloutPool
from orchestrator.planning.capacity import needs_reference
from orchestrator.planning.placement import PlacementError, bundles, check_resources
from orchestrator.planning.settings import critic_settings, early_stop, policy_settings
from workers import USER_PATH_VARIABLE
from workers.calls import Call, bind
from workers.learner.critic_worker import CriticWorker
from workers.learner.policy_worker import PolicyWorker
from workers.learner.rank_worker import RankWorker
from workers.reward.worker import RewardWorker
from workers.rollout.worker import RolloutWorker
from workers.spans import SpanReporter
from workers.worker_group import Pending, Placement, WorkerError, WorkerGroup, divide


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The running processes of a run."""

    fleet: Fleet
    learner: PolicyGroup
    reference: PolicyGroup | None
    critic: CriticGroup | None

    @property
    def groups(self) -> list[WorkerGroup[SpanReporter]]:
        """Every process of the run, role by role."""
        groups: list[WorkerGroup[SpanReporter]] = [self.fleet.workers, self.fleet.rewards]
        groups += [role.workers for role in (self.learner, self.reference, self.critic) if role]
        # Where the learner scores as reference, the two are one group.
        return list({id(group): group for group in groups}.values())


def start_ray(config: ClusterConfig) -> None:
    """Join the named cluster, or start a Ray of this run's own on this machine."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # The calls of an engine that died are given up on purpose.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if config.address is not None:
        ray.init(address=config.address, **common)
        return
    own: dict[str, Any] = {
        "address": "local",  # or Ray would join a cluster that happens to run on this machine
        "num_cpus": config.num_cpus,
        "object_store_memory": int(config.object_store_gib * 2**30),
        "include_dashboard": False,
        **common,
    }
    try:
        ray.init(**own)
    except RuntimeError:  # on a cold disk Ray's own processes may miss their time limit once
        ray.shutdown()
        ray.init(**own)


class Cluster:
    """A context manager that owns the roles of a run and leaves no process behind."""

    def __init__(
        self,
        config: TrainConfig,
        algorithm: Algorithm,
        *,
        run_id: str,
        model_path: str,
        critic_path: str | None = None,
    ) -> None:
        self._config, self._algorithm = config, algorithm
        self._run_id, self._model_path = run_id, model_path
        self._critic_path = critic_path or model_path
        self._groups: list[tuple[WorkerGroup[Any], Call[Any, None]]] = []
        self._placement: Any = None
        self._user_path = os.pathsep.join(path for path in sys.path if path)

    def __enter__(self) -> Cluster:
        start_ray(self._config.cluster)
        return self

    def __exit__(self, *exc: object) -> None:
        for group, last in reversed(self._groups):
            group.stop(last=last)
        if self._placement is not None:
            with contextlib.suppress(RayError):  # what ended the run is what the user shall read
                remove_placement_group(self._placement)
        ray.shutdown()

    def launch(
        self,
        *,
        environment: Any,
        scorer: Any,
        version: int,
        with_policy: bool = True,
        with_critic: bool = True,
    ) -> Roles:
        """Start every role; returns when all answer.

        Args:
            environment: built from `conf/environment`.
            scorer: built from `conf/reward`.
            version: what the engines call the weights that they load.
            with_policy: False starts engines and rewards only, to evaluate what they load.
            with_critic: False leaves the critic out although the algorithm has one.
        """
        config = self._config
        num_ranks = config.learner.num_ranks if with_policy else 0
        references = with_policy and needs_reference(config, self._algorithm)
        num_references = num_ranks if references else 0
        critic_runs = with_policy and with_critic and self._algorithm.needs_critic
        num_critics = config.critic.num_ranks if critic_runs else 0
        wanted = bundles(
            config, num_ranks=num_ranks, num_references=num_references, num_critics=num_critics
        )
        if not config.cluster.autoscaled:
            check_resources(config, wanted)
        limit_s = config.cluster.timeouts.start_s
        self._placement = placement_group(
            [{k: v for k, v in bundle.items() if v} for bundle in wanted],
            strategy=config.cluster.placement_strategy,
        )
        if not self._placement.wait(limit_s):
            raise PlacementError(
                f"placement_strategy={config.cluster.placement_strategy} can't place {wanted} on "
                f"this cluster in {limit_s:g} s; choose another strategy or cluster="
            )
        first = 0 if config.cluster.colocated else config.rollout.num_engines
        rewards = self._launch_rewards(scorer)
        launcher = EngineLauncher(
            config,
            run_id=self._run_id,
            model_path=self._model_path,
            environment=environment,
            early_stop=early_stop(config, self._algorithm),
            env=self._env(config.cluster.rollout.threads),
            placement=self._placement,
        )
        rollouts = launcher.launch_first()
        self._groups.append((rollouts, bind(RolloutWorker.shutdown)))
        learner = self._launch_policy("learner", first, num_ranks)
        own = 0 if config.cluster.colocated else num_ranks
        reference = self._launch_policy("reference", first + own, num_references)
        critic = self._launch_critic(
            first if config.cluster.critic.shared else first + num_ranks + num_references,
            num_critics,
        )
        begin = bind(RolloutWorker.start, version, rewards)
        engines = rollouts.start(begin, timeout_s=limit_s)
        if config.cluster.colocated and with_policy:
            lost = self._failed_starts(engines)
            sleep_engines(rollouts.only(set(rollouts.ranks) - set(lost)), config)
        others = [self._connect(group) for group in (learner, reference, critic) if len(group)]
        for pending in others:
            pending.result()
        lost = self._failed_starts(engines)

        # With an adapter the learner still holds the policy that it started from.
        free = num_ranks and "ref_logprobs" in self._algorithm.required_columns
        without_adapter = self._policy(learner, base=True) if free else None
        pool = RolloutPool(
            rollouts,
            silence_s=config.cluster.timeouts.engine_s,
            together=config.schedule.max_staleness == 0,
            concurrency=concurrency_of(config),
            keep=None if launcher.one_node else self._keeper(first if num_ranks else None).keep,
        )
        for number, failure in lost.items():
            pool.kill(number, str(failure))
        return Roles(
            fleet=Fleet(launcher=launcher, workers=rollouts, pool=pool, rewards=rewards),
            learner=self._policy(learner),
            reference=self._policy(reference) if num_references else without_adapter,
            critic=CriticGroup(critic, train_s=config.cluster.timeouts.train_s)
            if num_critics
            else None,
        )

    def _keeper(self, bundle: int | None) -> BatchKeeper:
        """Return the keeper on a bundle's node, or on the driver's."""
        nodes = placement_group_table(self._placement)["bundles_to_node_id"]
        own: str = ray.get_runtime_context().get_node_id()
        return BatchKeeper(own if bundle is None else nodes[bundle])

    def _failed_starts(self, engines: Pending[str]) -> dict[int, WorkerError]:
        """Return why engines did not start; they are started again while the others sample.

        Raises:
            WorkerError: too few started.
        """
        started, failed = divide(engines.outcomes())
        if failed and len(started) < self._config.rollout.min_engines:
            raise next(iter(failed.values()))
        return failed

    def describe_engines(self) -> str:
        """A line that names the node of every engine."""
        return describe_engines(engine_nodes(self._placement, self._config.rollout.num_engines))

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

    def _launch_rewards(self, scorer: Any) -> WorkerGroup[RewardWorker]:
        reward = self._config.reward
        group = WorkerGroup.launch(
            "reward",
            RewardWorker,
            num_workers=reward.num_workers if self._config.rollout.num_engines else 0,
            arguments=lambda rank: {
                "scorer": scorer,
                "num_processes": reward.num_processes,
                "timeout_s": reward.timeout_s,
            },
            env=lambda rank: self._env(1),
            max_concurrency=64,
            restarts=True,
            retries=1,
        )
        self._groups.append((group, bind(RewardWorker.close)))
        return group

    def _launch_policy(
        self, role_name: str, first_bundle: int, num_ranks: int
    ) -> WorkerGroup[PolicyWorker]:
        config = self._config
        role = config.cluster.learner if role_name == "learner" else config.cluster.reference
        settings = policy_settings(config, self._model_path, trains=role_name == "learner")
        group = WorkerGroup.launch(
            role_name,
            PolicyWorker,
            num_workers=num_ranks,
            arguments=lambda rank: {
                "run_id": self._run_id,
                "rank": rank,
                "world_size": num_ranks,
                "settings": settings,
                "algorithm": self._algorithm,
                "temperature": config.rollout.sampling.temperature,
                "timeout_s": config.cluster.timeouts.train_s,
            },
            env=lambda rank: self._env(role.threads),
            placement=Placement(
                group=self._placement,
                bundles=range(first_bundle, first_bundle + num_ranks),
                num_cpus=role.num_cpus,
                num_gpus=config.cluster.gpus_of(role_name, critic=self._algorithm.needs_critic),
            ),
        )
        self._groups.append((group, bind(PolicyWorker.close)))
        return group

    def _launch_critic(self, first_bundle: int, num_ranks: int) -> WorkerGroup[CriticWorker]:
        config, role = self._config, self._config.cluster.critic
        settings = critic_settings(config, self._critic_path)
        group = WorkerGroup.launch(
            "critic",
            CriticWorker,
            num_workers=num_ranks,
            arguments=lambda rank: {
                "rank": rank,
                "world_size": num_ranks,
                "settings": settings,
                "algorithm": self._algorithm,
                "timeout_s": config.cluster.timeouts.train_s,
            },
            env=lambda rank: self._env(role.threads),
            placement=Placement(
                group=self._placement,
                bundles=range(first_bundle, first_bundle + num_ranks),
                num_cpus=role.num_cpus,
                num_gpus=config.cluster.gpus_of("critic", critic=True),
            ),
        )
        self._groups.append((group, bind(CriticWorker.close)))
        return group

    def _connect(self, group: WorkerGroup[RankWorker]) -> Pending[None]:
        """Rank 0 opens a port, every rank joins there and loads the model."""
        limit_s = self._config.cluster.timeouts.start_s
        address = group.call_first(bind(RankWorker.open_port), timeout_s=limit_s)
        return group.start(bind(RankWorker.start, address), timeout_s=limit_s)
