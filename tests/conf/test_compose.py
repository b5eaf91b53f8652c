"""Every shipped choice composes; a wrong key, member or value gets one clear message."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import conf
from conf.compose import ConfigError, complete, compose, override

ROOT = Path(conf.__file__).parent
GROUPS = (
    "model",
    "model/adapter",
    "trainer",
    "data",
    "evaluation/set",
    "reward",
    "environment",
    "rollout",
    "learner",
    "critic",
    "cluster",
    "schedule",
    "tracking",
    "rehearsal",
)
JUDGE = [f"reward.scorer.judges.judge.{key}=http://x/v1" for key in ("url", "model")]
LONG = ["rollout.max_model_len=8192", "learner.token_budget=8192"]
NEEDS = {  # members that leave a path to the user
    ("model", "hf"): ["model.path=/somewhere"],
    ("data", "parquet"): ["data.train_path=/somewhere.parquet", "data.max_prompt_tokens=32"],
    ("data", "files"): ["data.train_path=/somewhere.jsonl"],
    ("data", "reasoning"): ["rollout.max_model_len=288"],
    ("data", "dapo_math"): LONG,
    ("data", "dapo_math_english"): LONG,
    ("data", "klear_math"): LONG,
    ("data", "mmk12"): LONG,
    **{("data", name): LONG for name in ("gsm8k", "math", "numina_math", "deepscaler")},
    **{("data", name): LONG for name in ("countdown", "apps", "taco")},
    ("rollout", "replay"): ["rollout.replay.folder=/somewhere"],
    ("reward", "function"): ["reward.scorer.path=my.reward"],
    ("reward", "judge"): JUDGE,
    ("reward", "judge_ranking"): JUDGE,
    ("reward", "reward_model"): ["reward.scorer.path=/somewhere"],
    ("environment", "agent"): ["environment.player.command=my_agent"],
    ("environment", "function"): ["environment.player.path=my.play"],
    ("environment", "text_game"): ["environment.player.path=my.Game"],
}


def members(group):
    return sorted(path.stem for path in (ROOT / group).glob("*.yaml"))


@pytest.mark.parametrize(
    ("group", "member"), [(group, member) for group in GROUPS for member in members(group)]
)
def test_every_member_composes(group, member):
    raw, config = compose([f"{group}={member}", *NEEDS.get((group, member), [])])
    assert config.trainer.total_steps >= 1
    assert not OmegaConf.missing_keys(raw)


@pytest.mark.parametrize("experiment", members("experiment"))
def test_every_experiment_composes(experiment):
    _, config = compose([f"experiment={experiment}"])
    assert config.run_name == experiment


def test_the_default_run_is_the_quickstart():
    assert compose([])[1] == compose(["experiment=quickstart"])[1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "learner.zero_stag=3",
            "unknown key 'learner.zero_stag'; did you mean 'learner.zero_stage",
        ),
        ("rolout.num_engines=2", "unknown key 'rolout'; did you mean 'rollout'?"),
        ("algorithm=cpgdd", "unknown algorithm 'cpgdd'; did you mean 'cpgd'?"),
        ("rollout.num_engines=0", "rollout.num_engines=0: must be at least 1"),
        ("environment.max_turns=0", "environment.max_turns=0: must be at least 1"),
        ("environment.max_turn_tokens=0", "environment.max_turn_tokens=0: must be at least 1, or"),
        ("environment.time_s=0", "environment.time_s=0.0: must be positive, or null"),
        ("environment.max_turn=3", "did you mean 'environment.max_turns'"),
        ("rollout.max_engines=0", "max_engines=0: is below rollout.num_engines=1, which the run"),
        ("rollout.num_engines=many", "'many'"),
        ("learner.zero_stage=4", "learner.zero_stage=4: must be 0, 1, 2 or 3"),
        ("rollout.transport=carrier_pigeon", "one of auto, ipc, nccl, shm, gloo"),
        ("rollout.sampling.temperature=0", "positive temperature"),
        ("rollout.sampling.top_p=1.5", r"rollout.sampling.top_p=1.5: must be in \(0, 1\]"),
        ("trainer.updates_per_step=3", "must divide trainer.prompts_per_step=16"),
        ("rollout.max_model_len=20", "rollout.max_model_len=20: is below data.max_prompt_tokens"),
        ("learner.token_budget=30", "learner.token_budget=30: is below the longest sequence"),
        ("learner.num_ranks=1000", "exceeds the 128 sequences"),
        ("learner.sequence_parallel_size=2", "=2: must divide learner.num_ranks=1"),
        ("learner.sequence_parallel_size=0", "=0: must divide learner.num_ranks=1"),
        ("learner.shared_prefix=maybe", "'maybe': must be one of auto, true, false"),
        ("critic.zero_stage=4", "critic.zero_stage=4: must be 0, 1, 2 or 3"),
        ("critic.optimizer.lr=0", "critic.optimizer.lr=0.0: must be positive"),
        ("critic.token_budget=30", "critic.token_budget=30: is below the longest sequence"),
        ("critic.updates_per_step=3", "must divide trainer.prompts_per_step=16"),
        ("critic.warmup_steps=10", "leaves none of trainer.total_steps=10 to the policy"),
        ("critic.num_ranks=2", "exceeds learner.num_ranks=1.*placement=dedicated"),
        (
            "cluster.actor.placement=shared",
            "unknown key 'cluster.actor': the learner is the actor .*; leave the key out",
        ),
        (
            ["rollout.max_engines=2", "rollout.transport=ipc"],
            "transport=ipc reaches engines on the learner's GPU only; choose nccl, shm or gloo",
        ),
        ("cluster.critic.placement=aside", "must be one of shared, dedicated"),
        ("learner.profile.ranks=[1]", r"profile.ranks=\[1\]: must be ranks of the learner, 0 to 0"),
        ("learner.profile.steps=[99]", r"profile.steps=\[99\]: must be steps of the run, 1 to"),
        ("model.path=/somewhere", "either model.path"),
        ("model/adapter=lore", "unknown model/adapter 'lore'; did you mean 'lora'?"),
        ("model.adapter.rank=0", "model.adapter.rank=0: must be at least 1"),
        ("model.adapter.alpha=-1", "model.adapter.alpha=-1.0: must be positive"),
        ("model.adapter.target_modules=q_proj", "'q_proj': must be all-linear or a list"),
        ("model.adapter.publish=both", "one of merged, adapter"),
        ("trainer.best_is=mean", "trainer.best_is='mean': must be one of max, min"),
        ("trainer.best_metric=eval/mean", "set trainer.eval_every to a divisor"),
        ("a=b=c", "mismatched input"),
    ],
)
def test_bad_values_are_named(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        compose([override] if isinstance(override, str) else override)
    assert len(str(caught.value).splitlines()) == 1


def test_a_critic_takes_from_the_learner_what_is_not_its_own():
    overrides = ["learner.zero_stage=2", "learner.num_ranks=2", "trainer.updates_per_step=4"]
    _, config = compose([*overrides, "learner.optimizer.max_grad_norm=0.5"])
    assert (config.critic.zero_stage, config.critic.num_ranks) == (2, 2)
    assert config.critic.updates_per_step == 4
    assert config.critic.optimizer.max_grad_norm == 0.5
    assert config.critic.optimizer.lr == 1e-5
    _, config = compose([*overrides, "critic.zero_stage=0", "critic.updates_per_step=1"])
    assert (config.critic.zero_stage, config.learner.zero_stage) == (0, 2)
    assert (config.critic.updates_per_step, config.trainer.updates_per_step) == (1, 4)


def test_a_folder_of_ones_own(tmp_path):
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "mine.yaml").write_text("name: mine\nmax_staleness: 3\n")
    _, config = compose(["schedule=mine"], config_dir=str(tmp_path))
    assert config.schedule.max_staleness == 3


def test_a_saved_configuration_reads_back(tmp_path):
    raw, config = compose(["experiment=tiny", "seed=7"])
    OmegaConf.save(raw, tmp_path / "config.yaml")
    assert complete(OmegaConf.load(tmp_path / "config.yaml"))[1] == config


def test_a_saved_configuration_with_a_needless_key_says_why(tmp_path):
    raw, _ = compose(["experiment=tiny"])
    OmegaConf.save(raw, tmp_path / "config.yaml")
    saved = OmegaConf.load(tmp_path / "config.yaml")
    saved.cluster.actor = {"placement": "shared"}
    with pytest.raises(ConfigError, match="'cluster.actor': the learner is the actor at the start"):
        complete(saved)


def test_every_shipped_key_is_read_by_code():
    """A key of the schema that no module mentions would be a knob that does nothing."""
    from dataclasses import fields, is_dataclass

    from conf import schema

    sources = "".join(
        path.read_text()
        for folder in ("orchestrator", "workers")
        for path in (ROOT.parent / folder).rglob("*.py")
    )
    unread = [
        f"{name}.{item.name}"
        for name, kind in vars(schema).items()
        if is_dataclass(kind)
        for item in fields(kind)
        if f".{item.name}" not in sources and item.name != "name"
    ]
    assert unread == []


def test_a_saved_run_takes_values_and_members_of_some_groups():
    raw, _ = compose(["experiment=tiny"])
    changed = override(
        raw,
        ["reward=exact", "evaluation/set=[aime24,math500]", "rollout.eval_sampling.stop=[a,'b c']"],
    )
    _, config = complete(changed)
    assert config.reward.scorer["_target_"].endswith("Exact")
    assert list(config.evaluation.sets) == ["aime24", "math500"]
    assert config.evaluation.sets["aime24"].anchors[0].value == 0.289
    assert config.rollout.eval_sampling.stop == ["a", "b c"]
    assert config.data == compose(["experiment=tiny"])[1].data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("algorithm=dapo", "algorithm=: a saved run keeps its own; of its groups only data, rew"),
        ("reward=exct", "unknown reward 'exct'; did you mean 'exact'"),
        ("data.evl_limit=3", "unknown key 'data.evl_limit'; did you mean 'data.eval_limit'"),
    ],
)
def test_what_a_saved_run_cannot_take_is_refused(text, message):
    raw, _ = compose(["experiment=tiny"])
    with pytest.raises(ConfigError, match=f"^{message}"):
        complete(override(raw, [text]))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("{path: x, samples_per_prompt: 0}", "sets.a.samples_per_prompt=0: must be at least"),
        ("{path: x, prompt_template: Q}", r"has no \{prompt\}"),
        ("{path: x, sampling: {max_new_tokens: 30}}", r"sets.a.sampling.max_new_tokens = 16"),
        ("{limit: 3}", "evaluation.sets.a.path=None: give a file or folder, or evaluation.sets"),
        ("{path: x, build: {_target_: y}}", "evaluation.sets.a.path='x': give a file or"),
    ],
)
def test_a_held_out_set_that_cannot_be_is_refused(own, message, tmp_path):
    (tmp_path / "experiment").mkdir()
    text = f"# @package _global_\ndefaults: [tiny]\nevaluation: {{sets: {{a: {own}}}}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        compose(["experiment=mine"], config_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment=null", "experiment=null: a group is chosen by the name of a member; name one"),
        ("algorithm=null", "algorithm=null: a group is chosen by the name of a member; name one"),
        ("~algorithm", "algorithm has no value: give algorithm=..., or leave out the override"),
    ],
)
def test_a_group_without_a_member_gets_one_clear_line(override, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        compose([override])
