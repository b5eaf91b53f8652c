"""The diagnosis: literal shares, a configuration, and the one sentence that follows."""

import pytest

from conf.compose import compose
from orchestrator.telemetry.bubbles import describe, diagnose, mean_shares

ONE_STEP_OFF = "schedule=one_step_off"
COLOCATED = "cluster.colocated=true"


def shares(driver, learner, rollout, **others):
    """Shares of every role; what is left of 1 is idle."""
    roles = {"driver": driver, "learner": learner, "rollout": rollout, **others}
    return {role: {**own, "idle": 1.0 - sum(own.values())} for role, own in roles.items()}


def sentence(found, *overrides):
    _, config = compose(["experiment=tiny", *overrides])
    return diagnose(found, config)


CASES = {
    "sync, sampling is longer": (
        shares(
            {"generate": 0.6, "score": 0.02, "learn": 0.28, "publish": 0.08, "drive": 0.02},
            {"credit": 0.02, "learn": 0.28, "publish": 0.08},
            {"generate": 0.6, "publish": 0.08},
        ),
        ["cluster=gpu_8"],
        "learner idle 62 %: schedule=one_step_off lets the engines sample meanwhile, or add "
        "rollout engines (rollout.num_engines, now 4)",
    ),
    "sync, next to nothing to hide": (
        shares(
            {"generate": 0.88, "learn": 0.05, "publish": 0.05, "drive": 0.02},
            {"learn": 0.05, "publish": 0.05},
            {"generate": 0.88, "publish": 0.05},
        ),
        [],
        "learner idle 90 %: add rollout engines (rollout.num_engines, now 1), if cores are free",
    ),
    "sync, learning is longer": (
        shares(
            {"generate": 0.3, "score": 0.1, "learn": 0.55, "publish": 0.05},
            {"score": 0.1, "learn": 0.55, "publish": 0.05},
            {"generate": 0.3, "publish": 0.05},
        ),
        ["learner.num_ranks=2"],
        "rollout engines idle 65 %: schedule=one_step_off lets them sample while the learner "
        "trains, or add learner ranks (learner.num_ranks, now 2), if cores are free",
    ),
    "sync, a long tail": (
        shares(
            {"generate": 0.85, "learn": 0.12, "publish": 0.03},
            {"learn": 0.35, "publish": 0.03},
            {"generate": 0.3, "publish": 0.03},
        ),
        [],
        "rollout engines idle 67 %: schedule=async lets them go on while the slowest responses "
        "are finished",
    ),
    "rewards hold everybody up": (
        shares(
            {"generate": 0.8, "learn": 0.15, "publish": 0.05},
            {"learn": 0.15, "publish": 0.05},
            {"generate": 0.25, "wait_for_reward": 0.55, "publish": 0.05},
            reward={"score": 0.7},
        ),
        ["reward.num_processes=4"],
        "rollout engines waiting for rewards 55 %: raise reward.num_processes (now 4) or "
        "reward.num_workers (now 1)",
    ),
    "the environment holds everybody up": (
        shares(
            {"generate": 0.8, "learn": 0.15, "publish": 0.05},
            {"learn": 0.15, "publish": 0.05},
            {"generate": 0.2, "environment": 0.6, "publish": 0.05},
        ),
        [],
        "rollout engines waiting for the environment 60 %: make its calls faster, or let "
        "schedule=async sample other groups meanwhile",
    ),
    "ahead, the engines never rest": (
        shares(
            {"generate": 0.31, "learn": 0.59, "publish": 0.1},
            {"learn": 0.59, "publish": 0.1},
            {"generate": 0.9, "publish": 0.08},
        ),
        [ONE_STEP_OFF, "cluster=gpu_2"],
        "learner idle 31 %: the engines never are: add rollout engines (rollout.num_engines, now "
        "1)",
    ),
    "ahead, in order, both rest": (
        shares(
            {"generate": 0.4, "learn": 0.55, "publish": 0.05},
            {"learn": 0.55, "publish": 0.05},
            {"generate": 0.65, "publish": 0.05},
        ),
        [ONE_STEP_OFF],
        "learner idle 40 %: schedule=async lets it train what is finished, whatever was begun "
        "before",
    ),
    "async, both rest": (
        shares(
            {"generate": 0.4, "learn": 0.55, "publish": 0.05},
            {"learn": 0.55, "publish": 0.05},
            {"generate": 0.65, "publish": 0.05},
        ),
        ["schedule=async"],
        "learner idle 40 %: raise schedule.max_staleness (now 4): the engines idle too",
    ),
    "async, the learner never rests": (
        shares(
            {"generate": 0.02, "learn": 0.93, "publish": 0.05},
            {"learn": 0.93, "publish": 0.05},
            {"generate": 0.5, "publish": 0.05},
        ),
        ["schedule=async", "cluster=gpu_8"],
        "rollout engines idle 45 %: the learner never is: add learner ranks (learner.num_ranks, "
        "now 4), or take fewer engines",
    ),
    "async, nothing is left to gain": (
        shares(
            {"generate": 0.06, "learn": 0.88, "publish": 0.05, "drive": 0.01},
            {"learn": 0.88, "publish": 0.05},
            {"generate": 0.9, "publish": 0.05},
        ),
        ["schedule=async"],
        "nothing to gain from another schedule or placement: the largest bubble is learner idle "
        "7 %",
    ),
    "publication is most of it": (
        shares(
            {"generate": 0.2, "learn": 0.2, "publish": 0.6},
            {"learn": 0.2, "publish": 0.6},
            {"generate": 0.6, "publish": 0.4},
        ),
        ["schedule=async"],
        "publication 60 %: raise trainer.prompts_per_step (now 32): fewer, longer steps need less "
        "of it",
    ),
    "the driver is most of it": (
        shares(
            {"generate": 0.1, "learn": 0.1, "publish": 0.1, "drive": 0.7},
            {"learn": 0.1, "publish": 0.1},
            {"generate": 0.1, "publish": 0.1},
        ),
        [],
        "the driver's own work 70 %: raise trainer.prompts_per_step (now 32): fewer, longer steps "
        "need less of it",
    ),
    "in turns, a long tail": (
        shares(
            {"generate": 0.6, "switch": 0.04, "learn": 0.3, "publish": 0.06},
            {"switch": 0.02, "learn": 0.3, "publish": 0.04},
            {"generate": 0.35, "switch": 0.02, "publish": 0.04},
        ),
        [COLOCATED],
        "shared devices idle 27 %: the slowest responses hold up all of them; a cluster with "
        "engines of their own and schedule=async does not wait, and a lower "
        "rollout.sampling.max_new_tokens (now 5) shortens the wait",
    ),
    "in turns, well filled": (
        shares(
            {"generate": 0.6, "switch": 0.04, "learn": 0.3, "publish": 0.06},
            {"switch": 0.02, "learn": 0.3, "publish": 0.04},
            {"generate": 0.59, "switch": 0.02, "publish": 0.04},
        ),
        [COLOCATED],
        "nothing to gain from another schedule or placement: the largest bubble is publication 6 %",
    ),
    "in turns that are short": (
        shares(
            {"generate": 0.3, "switch": 0.3, "learn": 0.2, "publish": 0.2},
            {"switch": 0.2, "learn": 0.2, "publish": 0.05},
            {"generate": 0.28, "switch": 0.2, "publish": 0.05},
        ),
        [COLOCATED],
        "taking turns on the shared devices 40 %: raise trainer.prompts_per_step (now 32): fewer, "
        "longer turns",
    ),
    "a critic by itself": (
        shares(
            {"generate": 0.05, "learn": 0.9, "publish": 0.05},
            {"learn": 0.9, "publish": 0.05},
            {"generate": 0.95, "publish": 0.05},
            critic={"score": 0.1, "learn": 0.3},
        ),
        ["algorithm=ppo", "cluster.critic.placement=dedicated", "schedule=async"],
        "critic idle 60 %: cluster.critic.placement=shared puts it on the learner's devices",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_sentence(name):
    found, overrides, expected = CASES[name]
    assert sentence(found, *overrides) == expected


def test_a_replay_is_not_told_to_add_engines():
    found = {
        "driver": {"generate": 0.5, "learn": 0.45, "drive": 0.05},
        "learner": {"learn": 0.45, "idle": 0.55},
    }
    assert sentence(found) == (
        "learner waiting for the recording 50 %: put rollout.replay.folder on a faster disk"
    )


def test_a_recording_is_not_told_to_add_ranks():
    found = {
        "driver": {"generate": 0.98, "drive": 0.02},
        "rollout": {"generate": 0.6, "idle": 0.4},
    }
    assert sentence(found, "trainer=rollout_only") == (
        "rollout engines idle 40 %: schedule=one_step_off keeps the groups of the next batch in "
        "flight"
    )
    assert sentence(found, "trainer=rollout_only", "schedule=async") == (
        "rollout engines idle 40 %: raise schedule.max_staleness (now 4): more groups are in flight"
    )


def test_no_step_no_diagnosis():
    assert sentence({}) == "no step was measured"


def test_the_mean_is_over_time_and_without_the_first_step():
    steps = [
        {"time/step_s": 100.0, "bubble/learner/idle_frac": 1.0},
        {"time/step_s": 1.0, "bubble/learner/idle_frac": 0.5, "bubble/learner/learn_frac": 0.5},
        {"time/step_s": 3.0, "bubble/learner/idle_frac": 0.1, "bubble/learner/learn_frac": 0.9},
    ]
    # (0.5 + 0.3) / 4 and (0.5 + 2.7) / 4
    assert mean_shares(steps) == {"learner": pytest.approx({"idle": 0.2, "learn": 0.8})}
    assert mean_shares(steps[:1]) == {"learner": {"idle": 1.0}}
    assert mean_shares([]) == {}


def test_the_mean_is_without_a_step_in_which_an_engine_died():
    steps = [
        {
            "rollout/engines_lost": lost,
            "time/step_s": seconds,
            "bubble/learner/idle_frac": idle,
            "bubble/learner/learn_frac": 1.0 - idle,
        }
        for lost, seconds, idle in ((0, 1.0, 0.9), (0, 1.0, 0.2), (1, 50.0, 0.9), (1, 1.0, 0.4))
    ]
    assert mean_shares(steps)["learner"]["idle"] == pytest.approx(0.3)  # of the 2nd and the 4th


def test_a_role_without_an_answer_in_a_step_still_adds_up():
    steps = [
        {"time/step_s": 9.0},
        {"time/step_s": 1.0, "bubble/rollout/idle_frac": 0.5, "bubble/rollout/generate_frac": 0.5},
        {"time/step_s": 1.0},
    ]
    assert mean_shares(steps) == {"rollout": {"idle": 0.5, "generate": 0.5}}


def test_a_line_per_role():
    lines = describe({"rollout": {"idle": 0.3, "wait_for_reward": 0.001, "generate": 0.699}})
    assert lines == ["rollout   generate 70 %  idle 30 %"]
