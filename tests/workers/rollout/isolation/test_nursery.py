"""A nursery makes processes that play, ends them, and knows how they ended."""

import os
import pickle
import signal
import socket
import time

import pytest

from workers.reward.process import ProcessDiedError
from workers.rollout.environments.single_turn import SingleTurn
from workers.rollout.isolation.frames import load_plain, read_frame
from workers.rollout.isolation.nursery import Nursery
from workers.rollout.isolation.process import end_in_words


@pytest.fixture
def nursery():
    nursery = Nursery(pickle.dumps(SingleTurn()))
    yield nursery
    nursery.kill()


def start(nursery):
    ours, theirs = socket.socketpair()
    with theirs:
        process = nursery.start(theirs)
    assert load_plain(read_frame(ours)) == ("ready",)
    return process, ours


def test_a_process_ends_with_its_connection_when_it_is_killed_and_with_the_nursery(nursery):
    (closed, one), (killed, two), (left, three) = (start(nursery) for _ in range(3))
    one.close()
    assert nursery.end(closed, kill=False) == 0
    assert nursery.end(killed, kill=True) == -signal.SIGKILL
    with two, three:
        assert two.recv(1) == b""
        os.kill(nursery._process.pid, signal.SIGKILL)
        assert three.recv(1) == b""
        with pytest.raises(ProcessDiedError):
            nursery.end(left, kill=True)


def test_a_process_that_closes_its_connection_and_goes_on_is_killed(nursery):
    process, connection = start(nursery)
    os.kill(process, signal.SIGSTOP)
    began = time.monotonic()
    with connection:
        assert nursery.end(process, kill=False) == -signal.SIGKILL
    assert time.monotonic() - began > 0.9


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "its process ended with exit code 0"),
        (3, "its process ended with exit code 3"),
        (-11, "its process was ended by SIGSEGV"),
        (-60, "its process was ended by signal 60"),
    ],
)
def test_an_end_has_words(code, words):
    assert end_in_words(code) == words
