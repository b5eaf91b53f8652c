"""What Ballast asks of Ray for processes on GPUs, held against the installed Ray."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import ray
from ray._private.state import available_resources_per_node
from ray.util import get_node_ip_address, placement_group, placement_group_table
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from conf.compose import compose
from orchestrator.planning.placement import bundles
from workers.rollout.worker import RolloutWorker
from workers.worker_group import Placement, WorkerGroup


def accepts(function: Any, *args: Any, **kwargs: Any) -> None:
    """Fail where a call with these arguments would."""
    inspect.signature(function).bind(*args, **kwargs)


@pytest.mark.parametrize("num_gpus", [1.0, 2.0, 0.75, 0.45])
def test_an_actor_takes_these_options(num_gpus: float) -> None:
    """Ray checks them when they are set, before any process starts."""
    place: Any = object()
    options = {
        "num_cpus": 1.0,
        "num_gpus": num_gpus,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}},
        "max_concurrency": 1000,
        "max_restarts": -1,
        "max_task_retries": 0,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            place, placement_group_bundle_index=0
        ),
    }
    ray.remote(RolloutWorker).options(**options)


def test_a_wide_engine_has_its_gpus_in_one_bundle() -> None:
    from hydra.utils import instantiate

    from orchestrator.planning.roles import roles_of

    raw, config = compose(["experiment=cpgd_qwen25_7b", "rollout.tensor_parallel_size=2"])
    roles = roles_of(config, instantiate(raw.algorithm, _convert_="all"))
    placed = bundles(roles)
    assert placed[0] == {"CPU": 1.0, "GPU": 2.0}


def test_places_are_asked_for_and_given_back() -> None:
    accepts(
        placement_group,
        [{"CPU": 1.0, "GPU": 2.0}],
        bundle_label_selector=[{"ray.io/node-id": "3f9a"}],
    )
    accepts(placement_group, [{"CPU": 1.0}], strategy="SPREAD")
    accepts(placement_group_table, object())
    accepts(remove_placement_group, object())
    accepts(available_resources_per_node)
    accepts(get_node_ip_address)


def test_a_process_that_hangs_is_ended_and_comes_back() -> None:
    accepts(ray.kill, object(), no_restart=False)
    accepts(ray.wait, [object()], num_returns=1, timeout=0.0)


def test_our_own_launch_takes_a_place_of_gpus() -> None:
    accepts(
        WorkerGroup.launch,
        "rollout",
        RolloutWorker,
        ranks=[0],
        arguments=dict,
        env=dict,
        restarts=True,
        placement=Placement(group=object(), bundles=[0], num_cpus=1.0, num_gpus=2.0),  # type: ignore[arg-type]
        max_concurrency=1000,
    )
