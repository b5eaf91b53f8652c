"""The guessing game: answers, rewards, and the states that credit compares."""

import asyncio

import pytest

from workers.rollout.environments.contract import Task
from workers.rollout.environments.guessing import Guessing

TASK = Task(uid="p:0", prompt="0-6?", ground_truth="4")


@pytest.fixture
def play(rollout, says):
    """Plays one game with the given guesses; returns the outcome and the rollout."""

    def play(*guesses, **limits):
        own = rollout(says(*guesses), prompt="0-6?", **{"max_turns": 3, **limits})
        return asyncio.run(Guessing(high=6).play(TASK, own.first)), own

    return play


def shown(own):
    return "".join(map(chr, own.rows()[0].tokens))


def test_a_guess_is_answered_until_it_is_right(play):
    outcome, own = play("3", "5", "4")
    assert shown(own) == "0-6?3>5<4"
    assert (outcome.reward, dict(outcome.parts)) == (1.0, {"correct": 1.0, "guesses": 3.0})
    assert own.finish_reason == "stop"


def test_turns_that_are_used_up_are_no_reward_and_no_failure(play):
    outcome, own = play("3", "x", "6")
    assert shown(own) == "0-6?3>x?6"  # nobody answers the last guess
    assert (outcome.reward, outcome.parts["guesses"], own.finish_reason) == (0.0, 3.0, "stop")


def test_the_state_of_a_turn_is_the_range_that_is_left(play):
    def states(*guesses):
        return [span.state for span in play(*guesses)[1].rows()[0].turns]

    first, second, third = states("3", "6", "5")
    assert states("2", "3", "6")[2] == second  # 4-6, by another way
    assert states("3", "6", "6")[2] == third  # 4-5
    assert len({first, second, third}) == 3


def test_a_row_without_a_number_is_named(rollout, says):
    own = rollout(says("3"))
    with pytest.raises(ValueError, match="invalid literal for int"):
        asyncio.run(Guessing().play(Task(uid="p", prompt="?", ground_truth="four"), own.first))
