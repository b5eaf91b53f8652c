"""An environment by path: a function, a class, a file; another process finds it again."""

import asyncio
import pickle
import re

import pytest

from workers.rollout.environments.contract import Task
from workers.rollout.environments.function import Function
from workers.rollout.environments.preparing import prepared

TASK = Task(uid="p:0", prompt="q", ground_truth="b", columns={"level": 2})
FILE = """
import time

from workers.rollout.environments.contract import Outcome

async def echo(task, session, bonus=0.0):
    turn = await session.draw()
    return Outcome(reward=float(turn.text == task.ground_truth) + bonus)

class Counts:
    def __init__(self, start):
        time.sleep(0.05)
        self.count = start

    async def play(self, task, session):
        self.count += task.columns["level"]
        return Outcome(reward=float(self.count))

def plain(task, session):
    return None
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_a_function_plays_with_its_arguments(file, rollout, says):
    player = Function(path=f"{file}:echo", arguments={"bonus": 0.5})
    outcome = asyncio.run(player.play(TASK, rollout(says("b")).first))
    assert outcome.reward == 1.5


def test_a_class_is_built_once_in_each_process(file, rollout, says):
    player = Function(path=f"{file}:Counts", arguments={"start": 1})
    copy = pickle.loads(pickle.dumps(player))
    own = rollout(says()).first
    assert [asyncio.run(player.play(TASK, own)).reward for _ in range(2)] == [3.0, 5.0]
    assert asyncio.run(pickle.loads(pickle.dumps(player)).play(TASK, own)).reward == 3.0
    assert copy == player


def test_a_class_is_built_once_for_rollouts_that_begin_together(file, rollout, says):
    async def four():
        player = prepared(Function(path=f"{file}:Counts", arguments={"start": 1}), None)
        own = rollout(says()).first
        played = await asyncio.gather(*(player.play(TASK, own) for _ in range(4)))
        return sorted(outcome.reward for outcome in played)

    assert asyncio.run(four()) == [3.0, 5.0, 7.0, 9.0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plain", "names no `async def play(task, session)`"),
        ("missing", "cannot be imported (AttributeError: "),
    ],
)
def test_what_cannot_play_is_refused_before_anything_starts(file, name, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Function(path=f"{file}:{name}")
