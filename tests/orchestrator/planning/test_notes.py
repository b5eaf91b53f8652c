"""Notes of the plan: settings that are accepted and may surprise, each with its key."""

import re

import pytest
from hydra.utils import instantiate

from conf.compose import compose
from orchestrator.planning.notes import notes_of


def notes(*overrides):
    """Key -> text of every note on a tiny run."""
    raw, config = compose(["experiment=tiny", *overrides])
    found = notes_of(config, instantiate(raw.algorithm, _convert_="all"))
    return {note.key: note.text for note in found}


TWO = "trainer.updates_per_step=2"


@pytest.mark.parametrize(
    ("overrides", "key", "text"),
    [
        (["algorithm=dapo"], "trainer.updates_per_step", r"policy_loss \(ClippedRatio\)"),
        (["algorithm=cpgd"], "trainer.updates_per_step", r"ClippedLogRatio\), .*PolicyDrift\)"),
        (
            ["algorithm=reinforce", "algorithm/gate=erc"],
            "trainer.updates_per_step",
            r"gates.erc \(EntropyRatioClip\)",
        ),
        (["algorithm=reinforce", TWO], "trainer.updates_per_step", "Reinforce has neither ratio"),
        (
            ["algorithm=gpg", "trainer.epochs_per_step=3"],
            "trainer.updates_per_step",
            "3 updates a step",
        ),
        (
            ["algorithm=dapo", TWO, "rollout.sampling.top_p=0.9"],
            "rollout.sampling.top_p",
            "drawn from the cut vocabulary.*set 1.0",
        ),
        (
            ["algorithm=dapo", TWO, "rollout.sampling.top_k=20", "algorithm/correction=tis"],
            "rollout.sampling.top_k",
            "every ratio pi_old / mu of the correction.*set 0",
        ),
        (["algorithm=dapo", TWO, "schedule=async"], "algorithm/correction", "4 versions older"),
        (
            ["algorithm=cpgd", TWO, "model/adapter=lora", "learner.optimizer.lr=1e-6"],
            "learner.optimizer.lr",
            "1e-06 hardly moves an adapter",
        ),
        (
            [
                "algorithm=rpg_differentiable",
                TWO,
                "algorithm.policy_loss.clip=dual_joint",
                "algorithm.policy_loss.divergence=ufkl",
            ],
            "algorithm.policy_loss.beta",
            "has no effect: clip=dual_joint",
        ),
        (
            [
                "algorithm=dapo",
                TWO,
                "algorithm.reward_shaping.overlong.max_length=100",
                "algorithm.reward_shaping.overlong.buffer=20",
            ],
            "algorithm.reward_shaping.overlong.buffer",
            "at most 5 tokens, its ramp begins after 80",
        ),
    ],
)
def test_a_surprising_setting_has_a_note_with_its_key(overrides, key, text):
    found = notes(*overrides)
    assert re.search(text, found[key]), found


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm=cpgd", TWO],
        ["algorithm=reinforce"],
        ["algorithm=cpgd", TWO, "schedule=async", "algorithm/correction=tis"],
        [
            "algorithm=reinforce",
            "algorithm.policy_loss.importance_cap=2.0",
            "algorithm.bypass=true",
            "schedule=async",
        ],
        ["algorithm=dapo", TWO, "algorithm.reward_shaping.overlong.buffer=2"],
        ["algorithm=cpgd", TWO, "model/adapter=lora", "learner.optimizer.lr=1e-4"],
        ["algorithm=cpgd", TWO, "rollout.eval_sampling.top_p=0.9"],
    ],
)
def test_other_runs_have_none(overrides):
    assert notes(*overrides) == {}


def test_turns_have_a_bound_and_room():
    key = "environment.max_turn_tokens"
    assert "may use all 5 tokens of a rollout" in notes("environment.max_turns=3")[key]
    room = notes("environment.max_turns=3", f"{key}=2")["rollout.sampling.max_new_tokens"]
    assert "3 turns x 2 tokens fill it" in room
    fine = notes("environment.max_turns=3", f"{key}=1")
    assert not {key, "rollout.sampling.max_new_tokens"} & set(fine)
    assert key not in notes()  # one turn
