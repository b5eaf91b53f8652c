"""A game with Gymnasium's `reset` and `step`: texts in, texts out, in a thread of its own."""

import asyncio
import time

import pytest

from workers.rollout.environments.contract import Task, Turn
from workers.rollout.environments.guarded_play import EnvironmentFaultError
from workers.rollout.environments.outcome_check import checked
from workers.rollout.environments.preparing import prepared
from workers.rollout.environments.text_game import TextGame
from workers.rollout.limits import PROCESS, THREAD, BoundedEnvironment, RolloutLimits

FILE = '''
import os
import threading
import time

class Corridor:
    """Walk right three times; `seed` says where the walk begins."""

    closed = []

    def __init__(self, length=3, sleep_s=0.0):
        self.length, self.sleep_s = length, sleep_s
        self.thread = threading.get_ident()

    def reset(self, *, seed=None):
        self.place = seed % 2
        return f"at {self.place}", {}

    def step(self, action):
        time.sleep(self.sleep_s)
        assert threading.get_ident() == self.thread
        moved = action == "r"
        self.place += moved
        ended = self.place == self.length
        return f"at {self.place}", 0.25 * moved, ended, False, {}

    def close(self):
        self.closed.append(self.place)

class Trap(Corridor):
    def step(self, action):
        os.abort()

class Old(Corridor):
    def step(self, action):
        return super().step(action)[:4]
'''


@pytest.fixture
def game(tmp_path):
    def game(name="Corridor", **arguments):
        path = tmp_path / "games.py"
        path.write_text(FILE)
        return TextGame(path=f"{path}:{name}", arguments=arguments)

    return game


def task(seed):
    return Task(uid="p:0", prompt="go: ", ground_truth=None, columns={"seed": seed})


def test_a_game_is_played_to_its_end(game, rollout, says):
    own = rollout(says("r", "x", "r"), prompt="go: ", max_tokens=40)
    outcome = asyncio.run(game().play(task(1), own.first))
    assert "".join(map(chr, own.rows()[0].tokens)) == "go: at 1rat 2xat 2r"
    assert (outcome.reward, outcome.turn_rewards) == (0.5, [0.25, 0.0, 0.25])
    assert outcome.parts == {"ended": 1.0}
    states = [span.state for span in own.rows()[0].turns]
    assert states[1] == states[2] != states[0]


def test_a_game_that_does_not_end_ends_with_the_turns(game, rollout, says):
    own = rollout(says("x", "x"), prompt="go: ", max_tokens=40, max_turns=2)
    outcome = asyncio.run(game().play(task(0), own.first))
    assert (outcome.reward, outcome.parts) == (0.0, {"ended": 0.0})


def test_a_game_without_gymnasiums_five_values_is_refused(game, rollout, says):
    own = rollout(says("r"), prompt="go: ", max_tokens=40)
    with pytest.raises(ValueError, match="returns .observation, reward, terminated, truncated"):
        asyncio.run(game("Old").play(task(0), own.first))


def test_a_game_that_computes_for_long_stops_no_other(game, rollout, says):
    def playing(**arguments):
        return prepared(game(**arguments), None)

    async def both():
        slow = rollout(says("r"), prompt="go: ", max_tokens=40, max_turns=1)
        fast = rollout(says("r", "r"), prompt="go: ", max_tokens=40)
        waits = asyncio.create_task(playing(sleep_s=0.5).play(task(0), slow.first))
        began = time.perf_counter()
        await playing().play(task(1), fast.first)
        took = time.perf_counter() - began
        assert not waits.done()
        await waits
        return took

    assert asyncio.run(both()) < 0.4


def test_a_game_in_a_process_is_the_game_in_a_thread_and_may_crash_there(game, rollout, says):
    def playing(name, isolation):
        bounded = BoundedEnvironment(
            environment=game(name), limits=RolloutLimits(), isolation=isolation
        )
        return bounded.prepared(None).environment

    def played(environment):
        own = rollout(says("r", "x", "r"), prompt="go: ", max_tokens=40)
        return checked(asyncio.run(environment.play(task(1), own.first))), own.rows()

    isolated, trap = playing("Corridor", PROCESS), playing("Trap", PROCESS)
    assert played(isolated) == played(playing("Corridor", THREAD))
    with pytest.raises(EnvironmentFaultError, match="^its process was ended by SIGABRT$"):
        played(trap)
    isolated.close()
    trap.close()


def test_siblings_play_the_same_game_without_a_seed_in_the_row(game, rollout, says):
    def first_state():
        own = rollout(says("x"), prompt="go: ", max_tokens=40, max_turns=1)
        plain = Task(uid="p:7", prompt="go: ", ground_truth=None)
        asyncio.run(game().play(plain, own.first))
        return own.rows()[0].tokens

    assert first_state() == first_state()


def test_a_path_without_a_game_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be imported"):
        TextGame(path=f"{tmp_path}/none.py:Game")


SHOWS = """
from PIL import Image


class Lamp:
    def reset(self, *, seed=None):
        return Image.new("RGB", (4, 4)), {}

    def step(self, action):
        return [{"type": "image", "image": Image.new("RGB", (4, 4))}], 1.0, False, True, {}
"""


def test_a_game_shows_pictures(tmp_path):
    (tmp_path / "lamp.py").write_text(SHOWS)
    observed, states = [], []

    class Session:
        may_draw = True

        async def observe(self, messages):
            observed.extend(messages)

        async def draw(self, *, state):
            states.append(state)
            return Turn(number=1, text="on", tokens=(7,), finish_reason="stop")

    played = TextGame(path=f"{tmp_path}/lamp.py:Lamp").play(task(0), Session())
    assert asyncio.run(played).reward == 1.0
    (message,) = observed
    (part,) = message["content"]
    assert (message["role"], part["type"], part["image"].size) == ("user", "image", (4, 4))
    assert states == [""]  # named by what was observed: its digest
