"""Group the parts of a run's rollout side in one record. Runs in the driver."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.fleet.launcher import EngineLauncher
from orchestrator.fleet.pool import RolloutPool
from workers.reward.worker import RewardWorker
from workers.rollout.worker import RolloutWorker
from workers.worker_group import WorkerGroup


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Rollout engines of a run, and the processes that they call.

    Attributes:
        launcher: places engines and starts their processes.
        workers: the processes of the engines, by engine number.
        pool: shares groups out among the engines.
        rewards: the reward workers, which engines call for the rewards of their samples.
    """

    launcher: EngineLauncher
    workers: WorkerGroup[RolloutWorker]
    pool: RolloutPool
    rewards: WorkerGroup[RewardWorker]
