"""The roles of a run as rows, and what placement adds up from them; starts nothing."""

import pytest
from hydra.utils import instantiate

from conf.compose import compose
from orchestrator.planning.capacity import check, gpus_asked
from orchestrator.planning.placement import bundles, total_resources
from orchestrator.planning.roles import Place, PlannedRole, role_named, roles_of

ROLLOUT = PlannedRole(name="rollout", place=Place.OWN, num_processes=1, num_cpus=1.0, threads=2)
REWARD = PlannedRole(name="reward", place=Place.ANYWHERE, num_processes=1, num_cpus=1.0)
LEARNER = PlannedRole(
    name="learner",
    place=Place.OWN,
    num_processes=1,
    first_bundle=1,
    num_cpus=1.0,
    threads=2,
    trains=True,
)


def roles(*overrides):
    raw, config = compose(list(overrides))
    return roles_of(config, instantiate(raw.algorithm, _convert_="all"))


def test_the_tiny_run_has_engines_rewards_and_a_learner():
    assert roles("experiment=tiny", "algorithm=rpg") == (ROLLOUT, REWARD, LEARNER)
    assert bundles(roles("experiment=tiny", "algorithm=rpg")) == [{"CPU": 1.0, "GPU": 0.0}] * 2


def test_beside_an_adapter_the_learner_is_actor_and_reference():
    overrides = ("model/adapter=lora", "trainer.epochs_per_step=2")
    found = roles("experiment=tiny", "algorithm=grpo", *overrides)
    assert found == (
        ROLLOUT,
        REWARD,
        LEARNER,
        PlannedRole(
            name="actor", place=Place.IN_LEARNER, note="the learner at the start of a step"
        ),
        PlannedRole(
            name="reference",
            place=Place.IN_LEARNER,
            note="the learner with its adapter switched off",
        ),
    )
    assert bundles(found) == [{"CPU": 1.0, "GPU": 0.0}] * 2


def test_a_shared_critic_halves_the_learners_gpu_and_not_its_bundles():
    overrides = ("cluster=gpu_2", "algorithm=ppo", "learner.num_ranks=2", "critic.num_ranks=1")
    found = roles("experiment=tiny", *overrides, "cluster.learner.num_gpus=0.5")
    assert role_named(found, "learner") == PlannedRole(
        name="learner",
        place=Place.OWN,
        num_processes=2,
        first_bundle=1,
        num_cpus=1.0,
        num_gpus=0.25,
        bundle_gpus=0.5,
        threads=4,
        trains=True,
    )
    assert role_named(found, "critic") == PlannedRole(
        name="critic",
        place=Place.BESIDE_LEARNER,
        num_processes=1,
        first_bundle=1,
        num_cpus=1.0,
        num_gpus=0.25,
        bundle_gpus=0.0,
        threads=4,
        trains=True,
        note="beside the learner",
    )
    assert role_named(found, "reference") is None


def test_a_dedicated_critic_stands_behind_all_others():
    found = roles("experiment=tiny", "algorithm=ppo", "cluster.critic.placement=dedicated")
    critic = role_named(found, "critic")
    assert (critic.place, critic.bundles, critic.note) == (Place.OWN, range(2, 3), "dedicated")


def test_colocated_roles_share_their_bundles():
    shape = ("rollout.num_engines=2", "learner.num_ranks=2", "cluster.gpus_per_node=2")
    found = roles("cluster=gpu_1_colocated", "algorithm=grpo", *shape)
    standing = {
        role.name: (role.place, role.bundles, role.num_gpus, role.bundle_gpus)
        for role in found
        if role.bundles
    }
    assert standing == {
        "rollout": (Place.TURNS, range(2), 0.45, 0.45),
        "learner": (Place.TURNS, range(2), 0.45, 0.45),
        "reference": (Place.TURNS, range(2), 0.1, 0.1),
    }


def test_wide_engines_take_a_bundle_of_all_their_devices():
    shape = ("rollout.num_engines=1", "rollout.tensor_parallel_size=2", "learner.num_ranks=1")
    found = roles("cluster=gpu_4", "algorithm=grpo", *shape)
    engine = role_named(found, "rollout")
    assert (engine.num_gpus, engine.devices, engine.bundles) == (1.0, 2, range(1))
    assert [bundle["GPU"] for bundle in bundles(found)] == [2.0, 1.0]  # the reference on the rest


def test_a_replay_has_no_engine_and_no_reward():
    replay = ("rollout=replay", "rollout.replay.folder=/runs/before", "algorithm=rpg")
    (learner,) = roles("experiment=tiny", *replay)
    assert (learner.name, learner.bundles) == ("learner", range(1))


def test_a_rollout_alone_has_engines_and_rewards_whatever_the_algorithm():
    assert roles("experiment=tiny", "trainer=rollout_only", "algorithm=ppo") == (ROLLOUT, REWARD)


def test_reward_workers_may_have_gpus_beside_those_of_all_bundles():
    two = ("cluster.reward_gpus=0.5", "reward.num_workers=2")
    found = roles("experiment=tiny", "cluster=gpu_2", *two)
    assert role_named(found, "reward") == PlannedRole(
        name="reward",
        place=Place.ANYWHERE,
        num_processes=2,
        num_cpus=1.0,
        num_gpus=0.5,
        note="0.5 GPU each",
    )
    without = total_resources(roles("experiment=tiny", "cluster=gpu_2"))
    assert total_resources(found)["GPU"] == without["GPU"] + 1.0
    assert gpus_asked(found)[1] == ("2 reward workers x 0.5", 1.0)


JUDGE = ("reward=judge", "reward.engine.model=/models/judge")


def test_a_judge_of_the_run_stands_between_engines_and_ranks():
    shape = ("reward.engine.num_engines=2", "reward.engine.tensor_parallel_size=4")
    found = roles("experiment=tiny", "cluster=gpu_8", "algorithm=grpo", *JUDGE, *shape)
    assert role_named(found, "judge") == PlannedRole(
        name="judge",
        place=Place.OWN,
        num_processes=2,
        first_bundle=4,
        num_cpus=1.0,
        num_gpus=1.0,
        bundle_gpus=1.0,
        devices=4,
        threads=4,
    )
    standing = {role.name: role.bundles for role in found if role.bundles}
    assert standing == {
        "rollout": range(4),
        "judge": range(4, 6),
        "learner": range(6, 10),
        "reference": range(6, 10),
    }
    assert [bundle["GPU"] for bundle in bundles(found)] == [1.0] * 4 + [4.0] * 2 + [1.0] * 4
    assert ("2 judge engines x 4 devices x 1", 8.0) in gpus_asked(found)


def test_beside_colocated_roles_a_judge_has_bundles_of_its_own():
    found = roles("experiment=tiny", "cluster=gpu_8_colocated", "algorithm=grpo", *JUDGE)
    standing = {role.name: role.bundles for role in found if role.bundles}
    assert standing == {
        "rollout": range(8),
        "judge": range(8, 9),
        "learner": range(8),
        "reference": range(8),
    }


def test_a_cluster_without_a_gpu_for_the_reward_model_is_refused():
    raw, config = compose(["experiment=tiny", "cluster=gpu_2", "cluster.reward_gpus=1"])
    with pytest.raises(ValueError, match=r"the run asks for .* \+ 1 reward worker x 1"):
        check(config, instantiate(raw.algorithm, _convert_="all"))
