"""An environment that blocks has a thread of its own: whatever it does, others play on."""

import asyncio
import threading
import time

import pytest

from workers.rollout.environments import guarded_play, threaded
from workers.rollout.environments.contract import Outcome, Task
from workers.rollout.environments.guarded_play import (
    EnvironmentClock,
    EnvironmentFaultError,
    play_guarded,
)
from workers.rollout.environments.preparing import prepared
from workers.rollout.environments.single_turn import SingleTurn
from workers.rollout.environments.threaded import ThreadedEnvironment
from workers.rollout.environments.unended import Unended

TASK = Task(uid="p:0", prompt="q:", ground_truth=None)


@pytest.fixture
def soon(monkeypatch):
    """Wait for the end of an environment for a part of a second only."""
    monkeypatch.setattr(threaded, "CANCEL_S", 0.05)
    monkeypatch.setattr(threaded, "EXIT_S", 0.02)
    monkeypatch.setattr(guarded_play, "END_S", 1.0)


def threads():
    return [one for one in threading.enumerate() if one.name == "environment"]


async def guarded(environment, session, *, stretch_s=5.0, unended=None):
    clock = EnvironmentClock(stretch_s=stretch_s)
    return await play_guarded(
        ThreadedEnvironment(environment), TASK, session, clock, unended or Unended()
    )


class Walks:
    """Uses all that a session offers."""

    async def play(self, task, session):
        await session.reopen("go:")
        await session.observe([{"role": "user", "content": "+"}])
        first = await session.draw(max_tokens=2)
        session.observe_tokens([ord("-")])
        other = session.branch(len(session.tokens))
        assert other.may_draw
        second = await other.draw(state="s")
        return Outcome(reward=0.5, response=first.text + second.text)


def test_a_rollout_in_a_thread_is_the_rollout_on_the_loop(rollout, says):
    played = []
    for environment in (Walks(), ThreadedEnvironment(Walks())):
        own = rollout(says("abc", "d"))
        outcome = asyncio.run(environment.play(TASK, own.first))
        played.append((outcome, own.rows(), own.text, own.finish_reason))
    assert played[0] == played[1]
    assert played[0][0] == Outcome(reward=0.5, response="abd")


def test_an_environment_that_blocks_slows_no_other_rollout(rollout, says):
    class Blocks:
        async def play(self, task, session):
            time.sleep(0.5)
            return Outcome(reward=1.0)

    async def both():
        slow = asyncio.create_task(guarded(Blocks(), None))
        await asyncio.sleep(0)
        began = time.perf_counter()
        await guarded(SingleTurn(), rollout(says("a")).first)
        took = time.perf_counter() - began
        assert not slow.done()
        return took, (await slow).reward

    took, reward = asyncio.run(both())
    assert took < 0.4
    assert reward == 1.0


def computes(session):
    while True:
        pass


def computes_and_catches(session):
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


@pytest.mark.parametrize("how", [computes, computes_and_catches])
def test_an_environment_that_computes_for_ever_costs_its_sample_and_its_thread_ends(how, soon):
    class Computes:
        async def play(self, task, session):
            how(session)

    async def run():
        unended = Unended()
        with pytest.raises(EnvironmentFaultError) as raised:
            await guarded(Computes(), None, stretch_s=0.05, unended=unended)
        return str(raised.value), len(unended)

    assert asyncio.run(run()) == ("took longer than 0.05 s", 0)
    deadline = time.monotonic() + 2.0
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == []


def test_an_environment_that_swallows_its_cancellation_is_ended_in_its_thread(soon):
    class Swallows:
        async def play(self, task, session):
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    continue

    with pytest.raises(EnvironmentFaultError, match=r"^took longer than 0\.05 s$"):
        asyncio.run(guarded(Swallows(), None, stretch_s=0.05))


def test_an_aborted_rollout_ends_its_thread_and_draws_no_more(soon, rollout, says):
    """The engine answers "never"; the cancelled environment would draw again."""
    own = rollout(says("a"))

    class Draws:
        async def play(self, task, session):
            while True:
                try:
                    await session.draw()
                    time.sleep(0.2)
                except asyncio.CancelledError:
                    continue

    async def run():
        playing = asyncio.create_task(guarded(Draws(), own.first))
        while not own.turns:
            await asyncio.sleep(0.01)
        playing.cancel()
        await asyncio.wait([playing])
        return playing.cancelled(), len(own.turns)

    assert asyncio.run(run()) == (True, 1)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("k"), "raised KeyError: 'k'"),
        (SystemExit("bye"), "raised SystemExit: bye"),
        (KeyboardInterrupt("key"), "raised KeyboardInterrupt: key"),
        (asyncio.CancelledError("own"), "raised CancelledError: own"),
    ],
)
def test_an_error_in_the_thread_is_the_error_of_the_environment(error, reason):
    class Raises:
        async def play(self, task, session):
            raise error

    with pytest.raises(EnvironmentFaultError) as raised:
        asyncio.run(guarded(Raises(), None))
    assert str(raised.value) == reason


def test_a_note_on_the_end_of_its_time_reaches_the_reason():
    class Notes:
        async def play(self, task, session):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError as error:
                error.add_note("in room 3")
                raise

    with pytest.raises(EnvironmentFaultError, match=r"^took longer than 0\.05 s; in room 3$"):
        asyncio.run(guarded(Notes(), None, stretch_s=0.05))


def test_only_an_environment_that_never_blocks_plays_on_the_workers_loop():
    class Mine:
        async def play(self, task, session):
            return Outcome()

    class Waits(Mine):
        never_blocks = True

    own, waits, single = Mine(), Waits(), SingleTurn()
    assert isinstance(once := prepared(own, None), ThreadedEnvironment)
    assert prepared(once, None) is once  # a worker that starts again prepares again
    assert prepared(waits, None) is waits
    assert prepared(single, None) is single
