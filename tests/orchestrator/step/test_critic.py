"""The critic in the plan, in the resources of a run and among the refusals; starts nothing."""

import json

import pytest
from hydra.utils import instantiate

from conf.compose import compose
from orchestrator.cli.parser import main
from orchestrator.planning import capacity, fitting, memory, plan
from orchestrator.planning.placement import bundles
from orchestrator.planning.roles import role_named, roles_of
from orchestrator.planning.settings import critic_settings, optimizer_settings
from orchestrator.planning.sources import check_vocabulary


def composed(*overrides):
    raw, config = compose(["experiment=tiny", *overrides])
    return config, instantiate(raw.algorithm, _convert_="all")


def row(text, name):
    found = [line for line in text.splitlines() if line.split()[:1] == [name]]
    return found[0] if found else None


def test_the_dry_run_shows_the_critic(capsys):
    assert (
        main(["train", "experiment=tiny", "algorithm=ppo", "critic.warmup_steps=3", "--dry-run"])
        == 0
    )
    text = capsys.readouterr().out
    assert "critic (beside the learner)" in row(text, "roles")
    assert "1 rank, ZeRO-0" in row(text, "critic")
    assert "alone in the first 3 steps" in row(text, "critic")


def test_without_a_critic_the_plan_has_none():
    config, algorithm = composed("algorithm=grpo")
    assert "critic" not in plan.describe(config, algorithm)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm=grpo", "algorithm/advantage=gae"], "reads values.*start from algorithm=ppo"),
        (
            ["algorithm=ppo", "algorithm/advantage=group_relative"],
            "GroupRelative does not read; choose algorithm/advantage=gae",
        ),
        (["algorithm=dapo", "critic.warmup_steps=2"], "has no critic to warm up"),
    ],
)
def test_what_does_not_belong_together_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        plan.check(*composed(*overrides))


KL = "+algorithm.regularizers.kl={_target_: algorithms.regularizers.ReferenceKL, coefficient: 0.1}"
GPUS = ("cluster=gpu_2", "algorithm=ppo", "learner.num_ranks=2", "cluster.learner.num_gpus=0.5")


def test_a_shared_critic_takes_half_of_the_learners_gpu():
    roles = roles_of(*composed(*GPUS, "critic.num_ranks=1"))
    assert role_named(roles, "learner").num_gpus == 0.25
    assert role_named(roles, "critic").num_gpus == 0.25
    assert role_named(roles, "rollout").num_gpus == 1.0
    alone = roles_of(*composed(*GPUS, "algorithm=grpo"))
    assert role_named(alone, "learner").num_gpus == 0.5
    # One engine, two learner ranks; the critic's one rank stands in the bundle of the first.
    assert bundles(roles) == [
        {"CPU": 1.0, "GPU": 1.0},
        {"CPU": 2.0, "GPU": 0.5},
        {"CPU": 1.0, "GPU": 0.5},
    ]


def test_a_dedicated_critic_has_bundles_of_its_own_after_the_learners():
    dedicated = [*GPUS, "cluster.critic.placement=dedicated", "critic.num_ranks=3"]
    config, algorithm = composed(*dedicated)
    assert role_named(roles_of(config, algorithm), "learner").num_gpus == 0.5
    with_reference = composed(*dedicated, KL)
    wanted = bundles(roles_of(*with_reference))
    # A learner rank and its reference, 0.5 + 0.25, leave a rest that no other bundle could use.
    assert [bundle["GPU"] for bundle in wanted] == [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"asks for 5: .* \+ 3 critic ranks x 1"):
        capacity.check(config, algorithm)


def test_a_shared_critic_is_counted_in_the_memory_of_the_learners_gpu():
    model = ["model=qwen25_7b", "model.path=null", "model.build={_target_: x}"]
    overrides = [*model, "cluster=gpu_2", "learner.zero_stage=0", "rollout.max_model_len=64"]
    config, algorithm = composed("algorithm=ppo", *overrides, "learner.gradient_checkpointing=true")
    roles = roles_of(config, algorithm)
    shares = memory.shares(config, config.model.architecture, roles)
    parts = {share.role: share.parts for share in shares}
    published = parts["learner"]["publication"]  # what alone the learner needs
    assert 0 < published < 2**31
    assert parts["critic"] == {k: v for k, v in parts["learner"].items() if k != "publication"}
    with pytest.raises(ValueError, match="learner: .*; critic: "):
        fitting.check(config, roles)


def test_schedules_count_the_steps_that_each_takes():
    config, _ = composed(
        "algorithm=ppo",
        "trainer.total_steps=10",
        "trainer.updates_per_step=2",
        "critic.updates_per_step=4",
        "critic.warmup_steps=3",
        "learner.optimizer.schedule=linear",
    )
    assert optimizer_settings(config).total_steps == 14  # (10 - 3) x 2
    settings = critic_settings(config, "/a/critic")
    assert settings.model == "/a/critic"
    assert settings.optimizer.total_steps == 40  # 10 x 4
    assert settings.optimizer.schedule == "linear"


def test_a_critic_of_a_smaller_vocabulary_is_refused(tmp_path):
    for name, size in (("policy", 64), ("small", 32), ("same", 64)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"vocab_size": size}))
    check_vocabulary(tmp_path / "same", tmp_path / "policy")
    with pytest.raises(ValueError, match="vocabulary of 32, the policy one of 64"):
        check_vocabulary(tmp_path / "small", tmp_path / "policy")
    with pytest.raises(ValueError, match="has no config.json"):
        check_vocabulary(tmp_path / "nowhere", tmp_path / "policy")
