"""Whatever an environment returns or raises costs one sample, and what is kept can be recorded."""

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from workers.rollout.environments.contract import Outcome, Task
from workers.rollout.environments.guarded_play import (
    EnvironmentClock,
    EnvironmentFaultError,
    play_guarded,
)

TASK = Task(uid="p:0", prompt="q", ground_truth=None)


@dataclass(frozen=True, kw_only=True)
class Returns:
    """Environment that draws nothing."""

    outcome: Any

    async def play(self, task, session):
        return self.outcome


def played(environment):
    clock = EnvironmentClock(stretch_s=5.0)
    return asyncio.run(play_guarded(environment, TASK, None, clock))


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
        playing = asyncio.create_task(play_guarded(Waits(), TASK, None, clock))
        await asyncio.sleep(0.01)
        playing.cancel()
        await asyncio.wait([playing])
        return playing.cancelled()

    assert asyncio.run(run())
