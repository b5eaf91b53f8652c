"""Nodes of ranks, engines and reward workers: the choice of a real Ray among pretended machines.

How far this is: a real Ray with raylets for a head without CPUs and four nodes of eight GPUs each,
all on this machine; the GPUs are numbers to Ray, and nothing computes on them.
"""

from collections import Counter

import pytest
import ray
from hydra.utils import instantiate
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from conf.compose import ConfigError, compose
from orchestrator.cluster.places import by_node, reserve
from orchestrator.planning.roles import role_named, roles_of
from workers.calls import bind
from workers.worker_group import WorkerGroup

NUM_NODES = 4


@pytest.fixture(scope="module")
def machines():
    """The ids of the four nodes; Ray is joined."""
    memory = {"object_store_memory": 100_000_000}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory}
    )
    try:
        for _ in range(NUM_NODES):
            cluster.add_node(num_cpus=64, num_gpus=8, **memory)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield {node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU")}
    finally:
        ray.shutdown()
        cluster.shutdown()


def planned(*overrides):
    raw, config = compose([f"cluster=nodes_{NUM_NODES}", "cluster.timeouts.start_s=60", *overrides])
    return config, roles_of(config, instantiate(raw.algorithm, _convert_="all"))


def nodes_of(places, role):
    nodes = placement_group_table(places.ranks)["bundles_to_node_id"]
    return [nodes[bundle] for bundle in places.of(role)]


# With a reference, which shares the learner's GPUs, and without: a quarter of each stays free.
@pytest.mark.parametrize("algorithm", ["grpo", "reinforce_pp_baseline", "dr_grpo"])
def test_the_learner_fills_nodes_and_engines_spread_over_the_others(machines, algorithm):
    config, roles = planned(f"algorithm={algorithm}", "learner.sequence_parallel_size=4")
    places = reserve(config, roles)
    try:
        ranks = nodes_of(places, role_named(roles, "learner"))
        assert len(ranks) == 16
        assert Counter(ranks) == dict.fromkeys(ranks, 8)  # two nodes, filled
        assert all(len(set(ranks[first : first + 4])) == 1 for first in range(0, 16, 4))  # Ulysses
        engines = placement_group_table(places.engines)["bundles_to_node_id"].values()
        assert Counter(engines) == dict.fromkeys(machines - set(ranks), 8)
        assert places.nodes[0] == ranks[0]
        reference = role_named(roles, "reference")
        if reference is not None:
            assert nodes_of(places, reference) == ranks
    finally:
        places.give_back()


def test_wide_engines_of_a_judge_find_whole_nodes_before_engines_spread(machines):
    judge = ["reward=judge", "reward.engine.model=/m", "reward.engine.tensor_parallel_size=4"]
    shape = ["rollout.num_engines=8", "learner.num_ranks=8", "reward.engine.num_engines=4"]
    config, roles = planned("algorithm=dr_grpo", *judge, *shape)
    places = reserve(config, roles)
    try:
        own = placement_group_table(places.judges)["bundles_to_node_id"]
        assert Counter(Counter(own.values()).values()) == {2: 2}  # two on each of two nodes
        assert set(own.values()).isdisjoint(places.nodes)
        assert len(set(nodes_of(places, role_named(roles, "learner")))) == 1
        assert len(placement_group_table(places.engines)["bundles_to_node_id"]) == 8
    finally:
        places.give_back()


class Place:
    """A worker that tells its node."""

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


def test_reward_workers_stay_off_a_head_without_cpus(machines):
    _, roles = planned("reward.num_workers=4")
    reward = role_named(roles, "reward")
    group = WorkerGroup.launch(
        "reward",
        Place,
        num_workers=reward.num_processes,
        arguments=lambda rank: {},
        env=lambda rank: {},
        num_cpus=reward.num_cpus,
    )
    try:
        found = group.call(bind(Place.node), timeout_s=120)
        assert set(found) <= machines
        assert len(set(found)) > 1
    finally:
        group.stop()


def test_ranks_of_one_node_follow_each_other():
    nodes = {0: "a", 1: "b", 2: "a", 3: "b", 4: "c", 5: "a"}
    assert by_node([0, 1, 2, 3], nodes) == [0, 2, 1, 3]
    assert by_node([1, 2, 3, 5], nodes) == [1, 3, 2, 5]


def test_a_strategy_that_ray_does_not_have_is_named():
    with pytest.raises(ConfigError, match="cluster.learner.strategy.*PACK, SPREAD"):
        compose(["cluster.learner.strategy=CLOSE"])
