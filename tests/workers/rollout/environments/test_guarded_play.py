"""Whatever an environment returns or raises costs one sample, and what is kept can be recorded."""

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from workers.rollout.environments import guarded_play
from workers.rollout.environments.contract import Outcome, Task
from workers.rollout.environments.guarded_play import (
    EnvironmentClock,
    EnvironmentFaultError,
    RolloutOverError,
    play_guarded,
)
from workers.rollout.environments.unended import Unended

TASK = Task(uid="p:0", prompt="q", ground_truth=None)


@dataclass(frozen=True, kw_only=True)
class Returns:
    """Environment that draws nothing."""

    outcome: Any

    async def play(self, task, session):
        return self.outcome


def played(environment):
    clock = EnvironmentClock(stretch_s=5.0)
    return asyncio.run(play_guarded(environment, TASK, None, clock, Unended()))


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Outcome(reward="1.0"), "reward of type str, not a number"),
        (Outcome(reward=10**400), "reward that is not finite"),
        (Outcome(reward=1e39), "reward that is not finite"),  # of the record's 32 bits
        (Outcome(reward=1.0, parts={"steps": 10**400}), "part 'steps' that is not finite"),
        (Outcome(reward=1.0, parts={str(k): 1.0 for k in range(65)}), "65 parts, more than 64"),
        (Outcome(reward=1.0, parts={"x": torch.ones(2)}), "part 'x' of type Tensor, not a number"),
        (Outcome(reward=1.0, turn_rewards=0.5), "turn_rewards of type float, not a sequence"),
        (Outcome(reward=1.0, turn_rewards=None), "turn_rewards of type NoneType, not a sequence"),
        (Outcome(reward=1.0, notes={"a": 3}), "note 'a' of type int, not a text"),
        (Outcome(response=5), "response of type int, not a text"),
        ({"reward": 1.0}, "dict instead of an Outcome"),
    ],
)
def test_an_outcome_that_can_not_be_recorded_is_a_fault_of_the_environment(outcome, reason):
    with pytest.raises(EnvironmentFaultError) as raised:
        played(Returns(outcome=outcome))
    assert str(raised.value) == f"returned {reason}"


def test_an_outcome_holds_plain_numbers_whatever_the_environment_counts_with():
    given = Outcome(
        reward=torch.tensor(0.5),
        parts={"exact": np.array(1.0), 7: Decimal("0.25"), "won": True},
        turn_rewards=np.array([0.5, 0.0], dtype=np.float32),
        notes={"why": "five"},
    )
    found = played(Returns(outcome=given))
    assert found == Outcome(
        reward=0.5,
        parts={"exact": 1.0, "7": 0.25, "won": 1.0},
        turn_rewards=(0.5, 0.0),
        notes={"why": "five"},
    )
    values = (found.reward, *found.parts.values(), *found.turn_rewards)
    assert {type(value) for value in values} == {float}


def test_an_error_whose_text_can_not_be_made_is_named_all_the_same():
    class WordlessError(Exception):
        def __str__(self):
            raise KeyError("no text")

    class Raises:
        async def play(self, task, session):
            raise WordlessError

    with pytest.raises(EnvironmentFaultError, match="^raised WordlessError: an error without a te"):
        played(Raises())


def test_a_cancellation_that_an_environment_lets_out_is_its_own_fault():
    class Lets:
        async def play(self, task, session):
            helper = asyncio.create_task(asyncio.sleep(60))
            helper.cancel()
            await helper

    with pytest.raises(EnvironmentFaultError, match="^raised CancelledError"):
        played(Lets())


def test_a_rollout_that_is_cancelled_stays_cancelled():
    async def run():
        class Waits:
            async def play(self, task, session):
                await asyncio.Event().wait()

        clock = EnvironmentClock(stretch_s=5.0)
        playing = asyncio.create_task(play_guarded(Waits(), TASK, None, clock, Unended()))
        await asyncio.sleep(0.01)
        playing.cancel()
        await asyncio.wait([playing])
        return playing.cancelled()

    assert asyncio.run(run())


class Retries:
    """Environment that catches all there is and tries again, until `stop` is set."""

    def __init__(self, clock):
        self.clock, self.stop, self.seen = clock, asyncio.Event(), []

    async def play(self, task, session):
        while not self.stop.is_set():
            try:
                await asyncio.sleep(0.01)
                await self.clock.check()  # as a draw does
            except BaseException as error:
                self.seen.append(type(error))


@pytest.fixture
def soon(monkeypatch):
    """Wait for the end of an environment for 50 ms only."""
    monkeypatch.setattr(guarded_play, "END_S", 0.05)
    monkeypatch.setattr(guarded_play, "AGAIN_S", 0.01)


async def stopped(retries, unended):
    """Let an environment that was left behind see that it draws no more, and end."""
    while RolloutOverError not in retries.seen:
        await asyncio.sleep(0.01)
    held = len(unended)
    retries.stop.set()
    while len(unended):
        await asyncio.sleep(0.01)
    return held


def test_an_environment_that_no_cancellation_ends_is_left_behind_and_draws_no_more(soon, caplog):
    async def run():
        clock, unended = EnvironmentClock(stretch_s=0.05), Unended()
        retries = Retries(clock)
        with pytest.raises(EnvironmentFaultError) as raised:
            await play_guarded(retries, TASK, None, clock, unended)
        return str(raised.value), await stopped(retries, unended), retries.seen[0]

    found = asyncio.run(asyncio.wait_for(run(), 5.0))
    assert found == ("took longer than 0.05 s, and does not end", 1, asyncio.CancelledError)
    assert "1 rollout(s) go on after they were cancelled" in caplog.text


def test_a_rollout_is_cancelled_even_if_its_environment_goes_on(soon):
    """As `GroupPlay` cancels it where the group is aborted: at a pause, an end, a dead engine."""

    async def run():
        clock, unended = EnvironmentClock(stretch_s=60.0), Unended()
        retries = Retries(clock)
        playing = asyncio.create_task(play_guarded(retries, TASK, None, clock, unended))
        await asyncio.sleep(0.02)
        playing.cancel()
        await asyncio.wait([playing])
        return playing.cancelled(), await stopped(retries, unended)

    assert asyncio.run(asyncio.wait_for(run(), 5.0)) == (True, 1)


def test_a_worker_plays_no_more_beside_too_many_rollouts_that_do_not_end(soon):
    async def run():
        unended, clock = Unended(most=1), EnvironmentClock(stretch_s=0.02)
        retries = Retries(clock)
        with pytest.raises(EnvironmentFaultError):
            await play_guarded(retries, TASK, None, clock, unended)
        with pytest.raises(EnvironmentFaultError) as raised:
            await play_guarded(Returns(outcome=Outcome()), TASK, None, clock, unended)
        await stopped(retries, unended)
        after = await play_guarded(
            Returns(outcome=Outcome()), TASK, None, EnvironmentClock(stretch_s=5.0), unended
        )
        return str(raised.value), after

    found = asyncio.run(asyncio.wait_for(run(), 5.0))
    assert found == ("1 other rollouts do not end", Outcome())


def test_draws_that_nobody_waits_for_end_with_the_rollout():
    async def run():
        clock, ended = EnvironmentClock(stretch_s=5.0), []

        async def draw():
            try:
                with clock.drawing():
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")

        class Forgets:
            async def play(self, task, session):
                self.helper = asyncio.create_task(draw())
                await asyncio.sleep(0.01)
                return Outcome(reward=1.0)

        await play_guarded(Forgets(), TASK, None, clock, Unended())
        await asyncio.sleep(0.01)
        return ended

    assert asyncio.run(run()) == ["cancelled"]
