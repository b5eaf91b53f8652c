"""A misspelt name gets the names that are near it, or the list to choose from."""

import pytest

from conf.compose import ConfigError, compose
from conf.suggestions import dotted_keys, explain_member, nearest_keys, nearest_member

KEYS = [
    "seed",
    "learner",
    "learner.num_ranks",
    "learner.optimizer",
    "learner.optimizer.lr",
    "critic",
    "critic.num_ranks",
    "critic.optimizer.lr",
    "trainer.total_steps",
    "learner.profile.steps",
    "rollout.sampling.temperature",
    "rollout.eval_sampling.temperature",
]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("learner.lr", ["learner.optimizer.lr"]),  # 1 + 1/2, against 1 + 0 of the critic's
        ("lr", ["learner.optimizer.lr", "critic.optimizer.lr"]),
        ("reward.lr", ["learner.optimizer.lr", "critic.optimizer.lr"]),
        ("learnr", ["learner"]),
        ("learner.num_rank", ["learner.num_ranks"]),
        ("learner.optimiser", ["learner.optimizer"]),
        ("trainer.steps", ["trainer.total_steps"]),  # 10/16 + 1, against 1 + 0 of the profile's
        ("rollout.temperature", KEYS[-2:]),
        ("learner.zzz", []),
        ("reward.sed", []),  # near a key of another place, and not the same
        ("sed", ["seed"]),
    ],
)
def test_a_key_is_near_by_its_last_part_and_by_its_path(wrong, right):
    assert nearest_keys(wrong, KEYS) == right


def test_only_a_member_that_is_near_is_suggested():
    members = ["cpgd", "grpo", "ppo", "rloo", "rpg"]
    assert nearest_member("cpgdd", members) == "cpgd"  # 2 x 4 / 9 = 0.89
    assert nearest_member("foo", members) is None  # rloo: 2 x 2 / 7 = 0.57
    assert explain_member("algorithm", "foo", members) == (
        "unknown algorithm 'foo'; choose one of cpgd, grpo, ppo, rloo, rpg"
    )
    assert explain_member("algorithm", "ppoo", members) == (
        "unknown algorithm 'ppoo'; did you mean 'ppo'?"
    )


def test_keys_of_a_tree_are_dotted():
    assert list(dotted_keys({"a": 1, "b": {"c": {"d": 2}}})) == ["a", "b", "b.c", "b.c.d"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.lr=1", "unknown key 'learner.lr'; did you mean 'learner.optimizer.lr'?"),
        ("+learner.lr=1", "unknown key 'learner.lr'; did you mean 'learner.optimizer.lr'?"),
        ("learner.zzz=1", "unknown key 'learner.zzz'; learner has num_ranks, zero_stage, "),
        ("qqqqq=1", "unknown key 'qqqqq'; choose one of run_name, output_dir, seed, "),
        ("algorithm/gat=erc", "unknown key 'algorithm/gat'; did you mean 'algorithm/gate'?"),
        ("algorithm.policy_loss.clip_lo=1", "did you mean 'algorithm.policy_loss.clip_low'?"),
        ("algorithm=foo", "unknown algorithm 'foo'; choose one of ce_gppo, "),
    ],
)
def test_the_message_of_an_override_names_what_is_near(override, message):
    with pytest.raises(ConfigError) as caught:
        compose(["algorithm=cpgd", override] if override[:10] != "algorithm=" else [override])
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
