"""Launch the engines of the run's own judge, and fill their addresses into its scorer.

Runs in the driver. An engine's server is kept running by its worker, not from here.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Mapping
from typing import Any

from ray.util.placement_group import PlacementGroup

from conf.schema import TrainConfig
from orchestrator.planning.roles import PlannedRole
from orchestrator.planning.settings import judge_settings
from workers.calls import bind
from workers.engines.judge.settings import KEY_VARIABLE
from workers.engines.judge.worker import JudgeWorker
from workers.reward.scorers.models.judge_model import JudgeEngines, on_engines
from workers.worker_group import Placement, WorkerGroup

PORTS = range(20_000, 32_000)  # below those that Linux gives to connections, above those of Ray
PORTS_EACH = 8  # of which the first free one is taken


def make_key() -> dict[str, str]:
    """Make the token of this run's judge; return it as a variable for the run's processes.

    The driver, whose scoring process tries the judge, has the variable from here on too.
    """
    os.environ[KEY_VARIABLE] = secrets.token_urlsafe(24)
    return {KEY_VARIABLE: os.environ[KEY_VARIABLE]}


def launch(
    config: TrainConfig,
    role: PlannedRole,
    place: PlacementGroup,
    *,
    env: Mapping[str, str],
    folder: str | None,
) -> WorkerGroup[JudgeWorker]:
    """Launch the engines, each in its bundle; their models load."""
    settings = judge_settings(config)
    # Random, so that several runs of a machine rarely look at the same ones.
    ports = random.SystemRandom().sample(PORTS, PORTS_EACH * role.num_processes)
    return WorkerGroup.launch(
        "judge",
        JudgeWorker,
        num_workers=role.num_processes,
        arguments=lambda rank: {
            "settings": settings,
            "ports": ports[PORTS_EACH * rank : PORTS_EACH * (rank + 1)],
            "silence_s": config.cluster.timeouts.engine_s,
            "log": f"judge.{rank}.log",
            "folder": folder,
        },
        env=lambda rank: env,
        placement=Placement(
            group=place,
            bundles=range(role.num_processes),
            num_cpus=role.num_cpus,
            num_gpus=role.num_gpus * role.devices,
        ),
        max_concurrency=4,  # it is closed while it waits
        restarts=True,
        retries=-1,
    )


def wait(config: TrainConfig, group: WorkerGroup[JudgeWorker], scorer: Any) -> Any:
    """Wait until all engines answer; return the scorer that asks them.

    Raises:
        WorkerError: an engine ended while it started, or is late; with the end of its log.
    """
    limit_s = config.cluster.timeouts.start_s
    # The worker's own message, with the log, comes before this call is given up.
    urls = group.call(bind(JudgeWorker.wait, limit_s), timeout_s=limit_s + 60.0)
    settings = judge_settings(config)
    engines = JudgeEngines(urls=tuple(urls), model=settings.model_path, token_variable=KEY_VARIABLE)
    return on_engines(scorer, engines)
