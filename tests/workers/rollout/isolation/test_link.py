"""Calls of one rollout have numbers, and each gets its own answer."""

import asyncio
import pickle

import pytest

from workers.reward.child import HEADER
from workers.rollout.environments.contract import SpentError
from workers.rollout.isolation.frames import FrameTooLongError, parts_of
from workers.rollout.isolation.link import Link, RemoteSession


class Worker:
    """Answers a call with its number, or with an error where `error` is set."""

    def __init__(self, error=None):
        self.sent, self.error = [], error
        self.link = Link(self.take, most_bytes=200)

    def take(self, frame):
        message = pickle.loads(frame[HEADER.size :])
        self.sent.append(message)
        if message[0] == "call" and self.error is not None:
            self.link.refuse(message[1], *parts_of(self.error))
        elif message[0] == "call":
            self.link.settle(message[1], message[1])


def test_every_call_has_its_row_and_its_answer():
    worker = Worker()
    session = RemoteSession(worker.link)
    assert session.tokens == 0
    other = session.branch(2)
    assert other.tokens == 2
    assert worker.sent == [
        ("call", 0, 0, "tokens", ()),
        ("call", 1, 0, "branch", (2, [])),
        ("call", 2, 1, "tokens", ()),
    ]


def test_an_error_is_raised_where_the_call_was_made():
    session = RemoteSession(Worker(SpentError("no turn")).link)
    with pytest.raises(SpentError, match="^no turn$"):
        asyncio.run(session.draw())


def test_a_call_behind_the_end_is_refused_and_one_that_is_too_long_is_not_sent():
    worker = Worker()
    session = RemoteSession(worker.link)
    with pytest.raises(FrameTooLongError):
        asyncio.run(session.observe([{"role": "user", "content": "x" * 200}]))
    worker.link.end(("outcome", {}))
    worker.link.end(("outcome", {"late": 1}))
    with pytest.raises(RuntimeError, match="^the rollout is over$"):
        session.observe_tokens([1])
    assert worker.sent == [("outcome", {})]
