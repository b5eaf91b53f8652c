"""Processes of one hostile environment, and a loop in which rollouts are played there."""

import asyncio

import pytest

from workers.rollout.environments.contract import Task
from workers.rollout.environments.function import Function
from workers.rollout.environments.guarded_play import (
    EnvironmentClock,
    EnvironmentFaultError,
    play_guarded,
)
from workers.rollout.environments.unended import Unended
from workers.rollout.isolation import served_rollout
from workers.rollout.isolation.environment import ProcessEnvironment

PLAYS = "tests.workers.rollout.isolation.hostile.Plays"


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.fixture(scope="module")
def processes():
    environment = ProcessEnvironment(Function(path=PLAYS), most_bytes=1 << 20)
    yield environment
    environment.close()


@pytest.fixture
def soon(monkeypatch):
    """Kill a process that does not end within a part of a second."""
    monkeypatch.setattr(served_rollout, "CANCEL_S", 0.2)


@pytest.fixture
def settled(loop, processes):
    """`settled()`: processes whose rollouts are over are idle, or have ended."""

    def settled():
        loop.run_until_complete(asyncio.wait({*processes._settling, loop.create_task(nothing())}))

    async def nothing():
        pass

    return settled


@pytest.fixture
def play(loop, processes):
    """`play(how, session)`: the outcome of one guarded rollout in another process."""

    def play(how, session=None, *, clock=None, stretch_s=30.0):
        unended = Unended()
        clock = clock or EnvironmentClock(stretch_s=stretch_s)
        task = Task(uid="p:0", prompt="q:", ground_truth=None, columns={"how": how})
        try:
            return loop.run_until_complete(play_guarded(processes, task, session, clock, unended))
        finally:
            assert len(unended) == 0  # a process can always be killed

    return play


@pytest.fixture
def fault(play):
    """`fault(how, session)`: the reason for which the rollout failed."""

    def fault(how, session=None, **limits):
        with pytest.raises(EnvironmentFaultError) as raised:
            play(how, session, **limits)
        return str(raised.value)

    return fault
