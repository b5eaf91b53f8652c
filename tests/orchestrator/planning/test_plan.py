"""The dry run: the arithmetic of a step and what configuration and algorithm must agree on."""

import pytest
from hydra.utils import instantiate

from conf.compose import compose
from orchestrator.planning import capacity, plan
from orchestrator.planning.roles import roles_of
from orchestrator.planning.settings import vllm_settings


def planned(*overrides):
    """What `ballast train --dry-run` prints, without leading blanks."""
    raw, config = compose(["experiment=tiny", *overrides])
    algorithm = instantiate(raw.algorithm, _convert_="all")
    plan.check_launch(config, algorithm)
    lines = plan.describe(config, algorithm).splitlines()
    return dict(line.strip().split("  ", 1) for line in lines)


def test_the_updates_of_every_pass_are_counted():
    rows = planned("trainer.updates_per_step=4", "trainer.epochs_per_step=2", "learner.num_ranks=2")
    assert rows["step"].startswith("32 prompts x 8 samples = 256 sequences")
    assert "256 / 4 = 64 sequences per optimizer update, about 32 on each of 2" in rows["updates"]
    assert rows["updates"].endswith("2 x 4 = 8 updates a step")
    assert "actor" in rows["roles"]


def test_a_part_that_a_weighted_reward_cannot_have_is_refused_by_name():
    parts = ["algorithm=grpo", "algorithm/advantage=decoupled", "reward=weighted"]
    planned(*parts, "algorithm.advantage.weights={exact: 1, format: 0.2}")
    planned(*parts, "algorithm.advantage.weights={exact/correct: 1}")  # a part of a scorer's own
    with pytest.raises(ValueError, match="advantage reads the reward's part 'style'; the parts of"):
        planned(*parts, "algorithm.advantage.weights={exact: 1, style: 0.2}")
    # An environment may give the reward and its parts itself.
    planned(*parts, "algorithm.advantage.weights={style: 1}", "environment=guessing")


@pytest.mark.parametrize(
    ("run", "own", "refused"),
    [
        ("guessing", "single_turn", True),
        ("guessing", "guessing", False),
        ("single_turn", "guessing", False),  # every source has its own: the run's plays none
    ],
)
def test_the_parts_of_a_weighted_reward_are_those_of_the_environments_of_all_sources(
    run, own, refused
):
    player = {
        "single_turn": "_target_: workers.rollout.environments.single_turn.SingleTurn",
        "guessing": "_target_: workers.rollout.environments.guessing.Guessing",
    }
    sources = [
        f"{{name: {name}, path: {name}, environment: {{max_turns: 2, player: {{{player[each]}}}}}}}"
        for name, each in (("a", "guessing"), ("b", own))
    ]
    overrides = [
        *("algorithm=grpo", "algorithm/advantage=decoupled", "reward=weighted", "data=files"),
        *(f"environment={run}", f"data.sources=[{', '.join(sources)}]"),
        "algorithm.advantage.weights={style: 1}",
    ]
    if refused:
        with pytest.raises(ValueError, match="reads the reward's part 'style'"):
            planned(*overrides)
    else:
        planned(*overrides)


def test_several_sources_are_named_with_their_weights():
    sources = "data.sources=[{name: a, path: a.jsonl, weight: 3}, {name: b, path: b, weight: 1.5}]"
    assert planned("data=files", sources)["data"].strip() == "a x 3 (a.jsonl), b x 1.5 (b)"
    assert planned()["data"].strip() == "copy (generated on first use)"


def test_one_pass_of_one_update_needs_no_actor():
    assert "actor" not in planned()["roles"]
    assert "actor" in planned("trainer.epochs_per_step=2")["roles"]


@pytest.mark.parametrize(
    ("overrides", "roles"),
    [
        (["algorithm=rpg"], "rollout, reward, learner"),
        (["algorithm=rpg", "algorithm.policy_loss.reference=ref"], "rollout, reward, learner, ref"),
        (["algorithm=grpo"], "rollout, reward, learner, reference"),
        (
            [
                "algorithm=grpo",
                "algorithm/reference=refreshed",
                "algorithm.reference.every_steps=1",
            ],
            "rollout, reward, learner",
        ),
    ],
)
def test_the_rule_decides_whether_a_reference_runs(overrides, roles):
    assert planned(*overrides)["roles"].startswith(roles)
    assert ("reference" in planned(*overrides)["roles"]) == ("ref" in roles)


def test_a_run_with_images_says_which_and_how_large():
    assert planned("data=colours", "rollout.max_model_len=64")["images"] == (
        "column image, 1 a prompt at most, scaled to 3136 pixels at most"
    )
    assert "images" not in planned()


def test_overlong_shaping_follows_the_budget():
    assert "max_length=5" in planned("algorithm=dapo")["algorithm"]


def test_notes_are_the_last_section_with_the_key_to_change():
    rows = planned("algorithm=dapo", "trainer.updates_per_step=2")
    assert list(rows)[-2:] == ["notes", "algorithm.reward_shaping.overlong.buffer"]
    assert rows["notes"].startswith("1 setting to look at")
    assert "the penalty never applies" in rows["algorithm.reward_shaping.overlong.buffer"]
    assert "notes" not in planned("trainer.updates_per_step=2")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner.offload_optimizer=true"], "learner: offload_optimizer needs zero_stage 1, 2"),
        (
            ["learner.optimizer.warmup_steps=9", "trainer.total_steps=8"],
            "learner: total_steps=8 is below warmup_steps=9",
        ),
        (["+learner.deepspeed.optimizer={}"], "learner: deepspeed.optimizer={} cannot be passed"),
        (["+learner.deepspeed.zero_optimization.stage=3"], "learner: .* set zero_stage"),
        (["+rollout.engine_kwargs.seed=3"], "rollout: rollout engine_kwargs may not set 'seed'"),
        (["learner.optimizer.betas=[0.9,1.0]"], "learner.optimizer.betas=.*below, 1"),
        (["learner.optimizer.betas=[-0.1,0.9]"], "learner.optimizer.betas=.*below, 1"),
        (
            ["algorithm=ppo", "critic.optimizer.warmup_steps=9", "trainer.total_steps=8"],
            "critic: total_steps=8 is below warmup_steps=9",
        ),
    ],
)
def test_the_dry_run_refuses_what_the_launch_would(overrides, message):
    with pytest.raises(ValueError, match=message):
        planned(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [
                "algorithm=grpo",
                "algorithm/controller=adaptive_kl",
                "algorithm.controllers.kl.metric=reference/kl_k3",
            ],
            "metric='reference/kl_k3' is not measured by this algorithm; did you mean 'ref",
        ),
        (["algorithm/reference=refreshed"], "has nothing to move"),
        (["reference.offload_params=true"], "needs reference.zero_stage=3"),
        (["trainer.epochs_per_step=0"], "trainer.epochs_per_step=0: must be at least 1"),
        (["learner.max_skipped_steps=0"], "learner.max_skipped_steps=0: must be at least 1"),
        (["algorithm.policy_loss.clip_high=-0.1"], "clip_high=-0.1 is below 0"),
        (["algorithm.regularizers.drift.coefficient=-1"], "coefficient=-1 is below 0"),
        (["algorithm=rpg", "algorithm.policy_loss.divergence=jsd"], "divergence='jsd' is unknown"),
        (["algorithm/gate=erc", "algorithm.gates.erc.low=-0.1"], "low=-0.1"),
        (["algorithm/correction=icepop", "algorithm.correction.low=9"], "low=9 is not below high"),
        (["algorithm/correction=tis", "algorithm.bypass=true"], "counts pi_old / mu twice"),
    ],
)
def test_what_cannot_be_is_named_before_anything_starts(overrides, message):
    with pytest.raises(Exception, match=message):
        planned(*overrides)


def test_a_replay_and_a_rollout_alone_plan_what_they_run():
    rows = planned("rollout=replay", "rollout.replay.folder=/runs/before", "algorithm=rpg")
    assert rows["roles"] == "learner"
    assert rows["rollout"] == "no engine: the record of /runs/before"
    assert "schedule" not in rows
    rows = planned("trainer=rollout_only", "algorithm=ppo")
    assert rows["roles"] == "rollout, reward"
    assert rows["rollout"].endswith("the model's weights")
    assert not {"algorithm", "updates", "learner", "critic"} & rows.keys()


@pytest.mark.parametrize(
    ("overrides", "gpus"),
    [
        ([], [4, 4]),
        (["rollout=replay", "rollout.replay.folder=/r", "learner.num_ranks=8"], [8]),
        (["trainer=rollout_only", "rollout.num_engines=8"], [8]),
    ],
)
def test_who_does_not_run_takes_no_gpu(overrides, gpus):
    raw, config = compose(["cluster=gpu_8", *overrides])
    algorithm = instantiate(raw.algorithm, _convert_="all")
    plan.check(config, algorithm)
    assert [count for _, count in capacity.gpus_asked(roles_of(config, algorithm))] == gpus


FRACTIONS = ["cluster.rollout.num_gpus=0.4", "cluster.learner.num_gpus=0.5"]


@pytest.mark.parametrize(
    ("overrides", "one_node", "chosen"),
    [
        (["experiment=tiny"], True, "shm"),
        (["experiment=tiny"], False, "gloo"),
        (["experiment=tiny", "rollout.transport=gloo"], True, "gloo"),
        (["experiment=cpgd_qwen25_7b", "cluster=gpu_8"], True, "nccl"),
        (["experiment=cpgd_qwen25_7b", "cluster=nodes_8"], False, "nccl"),
        (["experiment=cpgd_qwen25_7b", "cluster=gpu_8_colocated"], True, "ipc"),
        (["experiment=smollm2_reasoning", "cluster=gpu_1"], True, "ipc"),
        (["experiment=tiny", *FRACTIONS], True, "shm"),
        (
            [
                *("experiment=smollm2_reasoning", "cluster=gpu_2"),
                *("model/adapter=lora", "model.adapter.publish=adapter"),
            ],
            True,
            "shm",
        ),
    ],
)
def test_weights_go_the_way_that_the_places_allow(overrides, one_node, chosen):
    _, config = compose(overrides)
    assert capacity.choose_transport(config, one_node=one_node).name == chosen


def test_stale_keys_and_values_are_shared_with_no_new_prompt():
    for name, recomputes in (("recompute", True), ("stale", False)):
        _, config = compose(["experiment=tiny", f"schedule.kv_cache={name}"])
        engine = vllm_settings(config, "model", engine_id=0, transport="shm")
        assert engine.recompute_kv is engine.enable_prefix_caching is recomputes


def test_one_of_a_thing_has_no_plural():
    rows = planned("trainer.total_steps=1", "trainer.prompts_per_step=1")
    assert rows["run"].startswith("tiny, 1 step, seed")
    assert rows["step"] == "1 prompt x 8 samples = 8 sequences, at most 168 tokens"  # 8 x (16 + 5)
    assert rows["rollout"].startswith("1 engine x 1 device, float32")
    assert rows["updates"].startswith("8 / 1 = 8 sequences per optimizer update, 8 on one rank,")
    assert rows["updates"].endswith("1 x 1 = 1 update a step")
    assert rows["learner"].startswith("1 rank, ZeRO-0")
    shared = planned("learner.num_ranks=4", "learner.sequence_parallel_size=2")
    assert "about 128 on each of 2 groups of 2 ranks (sequence parallel)" in shared["updates"]
