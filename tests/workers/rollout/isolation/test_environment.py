"""Processes of an environment, real ones: whatever they do costs the rollout that they play."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.workers.rollout.isolation.hostile import Elsewhere, Plays
from workers.data.images.decoding import file_of
from workers.engines.vllm.answers import UnusableAnswerError
from workers.rollout.environments.contract import Outcome, SpentError, Task, Turn
from workers.rollout.environments.function import Function
from workers.rollout.environments.threaded import ThreadedEnvironment
from workers.rollout.isolation.environment import ProcessEnvironment
from workers.rollout.limits import PROCESS, BoundedEnvironment, RolloutLimits


def task(how):
    return Task(uid="p:0", prompt="q:", ground_truth=None, columns={"how": how})


def runs(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def left_of(processes, limit_s=10.0):
    """Processes that still run when all should have ended."""
    deadline = time.monotonic() + limit_s
    while any(map(runs, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [process for process in processes if runs(process)]


class Draws:
    """Session whose every turn is "a"."""

    may_draw = True
    tokens = range(100_000)

    def __init__(self):
        self.observed = []

    async def draw(self, **_):
        return Turn(number=1, text="a", tokens=(7,), finish_reason="stop")

    async def observe(self, messages):
        self.observed += messages


def test_a_rollout_in_a_process_is_the_rollout_in_a_thread(loop, processes, rollout, says):
    played = []
    for environment in (processes, ThreadedEnvironment(Plays())):
        own = rollout(says("abc", "d"), max_observation_bytes=100)
        outcome = loop.run_until_complete(environment.play(task("walks"), own.first))
        played.append((outcome, own.rows(), own.text, own.finish_reason))
    assert played[0] == played[1]
    outcome = played[0][0]
    assert (outcome.reward, outcome.response) == (0.5, "abd")
    assert outcome.notes["e"].startswith("observations of 201 bytes, beyond")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("exits", "its process ended with exit code 3"),
        ("crashes", "its process was ended by SIGSEGV"),
        ("is_killed", "its process was ended by SIGKILL"),
    ],
)
def test_a_process_that_ends_costs_its_sample_and_its_turns_are_kept(
    how, reason, play, fault, rollout, says
):
    own = rollout(says("ab"))
    assert fault(how, own.first) == reason
    assert [turn.text for turn in own.turns] == ["ab"]
    assert play("says_its_id").reward > 1


def test_the_end_of_a_process_that_forked_another_one_is_seen(fault):
    assert fault("forks_and_exits") == "its process ended with exit code 4"


def test_a_nursery_that_is_killed_is_replaced(loop, processes, play, fault, settled):
    before = int(play("says_its_id").reward)
    settled()
    os.kill(processes._nursery._process.pid, signal.SIGKILL)
    assert left_of([before]) == []
    loop.run_until_complete(asyncio.sleep(0.1))  # the ends of the idle ones are read
    assert int(play("says_its_id").reward) != before
    assert fault("exits", Draws()) == "its process ended with exit code 3"


def test_rollouts_at_once_have_a_process_each_and_later_ones_use_them_again(
    loop, processes, settled
):
    async def played(number):
        own = (processes.play(task("says_its_id"), None) for _ in range(number))
        return {outcome.reward for outcome in await asyncio.gather(*own)}

    both = loop.run_until_complete(played(2))
    assert len(both) == 2
    settled()
    assert loop.run_until_complete(played(1)) <= both


def test_a_process_has_what_the_environment_needs_and_nothing_of_the_worker(play):
    notes = play("describes_itself").notes
    assert notes == {
        "folder": os.getcwd(),
        "threads": "1",
        "stdin": "/dev/null",
        "same": "True",  # prints go to the worker's standard error
        "sockets": "3",  # to the worker, and the pair of its event loop
        "built": "1",
        "heavy": "[]",
    }


@pytest.mark.parametrize("how", ["hangs", "asks_and_hangs", "swallows"])
def test_a_rollout_that_no_cancellation_ends_is_killed_with_its_process(how, play, fault, soon):
    reason = "took longer than 0.5 s; its process was killed"
    began = time.monotonic()
    assert fault(how, Draws(), stretch_s=0.5) == reason
    assert time.monotonic() - began < 10


def test_an_environment_that_lets_its_cancellation_pass_keeps_its_process(play, fault, settled):
    reason, _, room = fault("waits", stretch_s=0.5).rpartition(" ")
    assert reason == "took longer than 0.5 s; in room"
    settled()
    assert play("says_its_id").reward == float(room)


def test_an_aborted_rollout_ends_with_its_process_and_what_that_had_started(loop, processes, soon):
    """As `GroupPlay` cancels it where the group is aborted."""

    async def run():
        session = Draws()
        playing = asyncio.create_task(processes.play(task("starts_another"), session))
        while not session.observed:
            await asyncio.sleep(0.01)
        playing.cancel()
        await asyncio.wait([playing])
        return playing.cancelled(), int(session.observed[0]["content"])

    cancelled, started = loop.run_until_complete(run())
    assert cancelled
    assert left_of([started]) == []


def test_a_draw_that_nobody_waits_for_any_more_is_cancelled(play):
    ended = []

    class Slow(Draws):
        async def draw(self, **_):
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("draw")

    assert play("draws_with_a_limit", Slow()).reward == 1.0
    assert ended == ["draw"]


def test_an_outcome_does_not_wait_for_threads_that_the_environment_left(play, settled, soon):
    began = time.monotonic()
    process = int(play("leaves_a_thread").reward)
    assert time.monotonic() - began < 10
    settled()
    assert left_of([process]) == []


MOST = "bytes for the rollout worker, which takes 1048576"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("writes_too_much", f"raised FrameTooLongError: 30..... {MOST}"),
        ("returns_too_much", f"returned 30..... {MOST}"),
        ("promises_too_much", "sent a message of 1099511627776 bytes, more than 1048576"),
        ("sends_a_class", "sent what is no message .workers.*Outcome"),
        ("sends_nonsense", "sent what is no message"),
        ("sends_one_call_twice", "sent what is no message .call."),
    ],
)
def test_a_flood_and_nonsense_stop_at_the_workers_door(how, reason, fault, play):
    assert re.match(reason, fault(how))
    assert play("says_its_id").reward > 1


def test_a_flood_of_calls_waits_for_its_answers(fault, soon):
    class Counts(Draws):
        now = most = 0

        async def draw(self, **_):
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.01)
            self.now -= 1
            return await super().draw()

    session = Counts()
    assert fault("calls_without_an_end", session, stretch_s=0.5).startswith("took longer")
    assert 1 < session.most <= 64


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raises_a_wordless_error", "raised WordlessError: an error without a text"),
        ("raises_its_own_error", "raised ToldError: five is even"),
        ("leaves", "raised SystemExit: bye"),
        ("returns_a_lock", "returned reward of type lock, not a number"),
        ("returns_a_mapping", "returned dict instead of an Outcome"),
    ],
)
def test_errors_and_outcomes_of_any_class_come_back_as_reasons(how, reason, fault):
    assert fault(how) == reason


def test_budgets_that_are_spent_end_a_rollout_as_they_do_in_a_thread(play, rollout, says):
    with pytest.raises(SpentError, match="^enough$"):
        play("is_spent")
    own = rollout(says("a", "b"), max_turns=2)
    with pytest.raises(SpentError, match="^no turn or no token is left"):
        play("draws_until_it_is_spent", own.first)
    assert own.finish_reason == "length"


class EngineHungError(TimeoutError):
    """A class that the process has never loaded."""


@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        (EngineHungError("no answer in 5 s"), "EngineHungError,TimeoutError,OSError"),
        (UnusableAnswerError("no log-probs"), "UnusableAnswerError,RuntimeError,Exception"),
    ],
)
def test_an_error_of_the_engine_has_its_name_and_its_bases_there(error, kinds, play):
    class Broken(Draws):
        async def draw(self, **_):
            raise error

    notes = play("names_the_error", Broken()).notes
    assert notes == {"kinds": kinds, "text": str(error)}


def test_a_fault_of_the_engine_is_raised_whatever_the_environment_made_of_it(play, rollout):
    async def breaks(*_):
        raise EngineHungError("no answer in 5 s")

    own = rollout(breaks)
    with pytest.raises(EngineHungError):
        play("names_the_error", own.first, clock=own.clock)


def test_an_environment_that_can_not_be_there_is_refused_at_the_start():
    with pytest.raises(ValueError, match="^Locked can't be sent to another process .cannot pickle"):
        ProcessEnvironment(Locked(), most_bytes=1)
    with pytest.raises(RuntimeError, match="^Elsewhere can't be built in .*: not in this process$"):
        ProcessEnvironment(Elsewhere(), most_bytes=1)


class Locked:
    def __init__(self):
        self.lock = threading.Lock()


ENDS = """
import asyncio, os, signal, sys
from workers.rollout.environments.contract import Task, Turn
from workers.rollout.environments.function import Function
from workers.rollout.isolation.environment import ProcessEnvironment

class Draws:
    async def draw(self, **_):
        return Turn(number=1, text="a", tokens=(7,), finish_reason="stop")

def task(how):
    return Task(uid="p:0", prompt="q:", ground_truth=None, columns={"how": how})

async def run():
    environment = ProcessEnvironment(
        Function(path="tests.workers.rollout.isolation.hostile.Plays"), most_bytes=1 << 20
    )
    ids = [environment.play(task("says_its_id"), None) for _ in range(3)]
    print(*(int(outcome.reward) for outcome in await asyncio.gather(*ids)), flush=True)
    await asyncio.sleep(0.2)
    playing = [asyncio.create_task(environment.play(task("hangs"), Draws())) for _ in range(2)]
    await asyncio.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(run())
"""


def test_the_end_of_the_worker_ends_its_processes_those_that_hang_too():
    done = subprocess.run(
        [sys.executable, "-c", ENDS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path])},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    processes = [int(word) for word in done.stdout.split()]
    assert len(processes) == 3
    assert left_of(processes) == []


SHOWS = """
from PIL import Image
from workers.rollout.environments.contract import Outcome

async def look(task, session):
    part = {"type": "image", "image": Image.new("RGB", (4, 4), "red")}
    await session.observe([{"role": "user", "content": [part]}])
    return Outcome(reward=1.0)
"""


def test_a_picture_arrives_as_the_file_that_a_thread_would_show(tmp_path, loop):
    (tmp_path / "shows.py").write_text(SHOWS)
    player = Function(path=f"{tmp_path / 'shows.py'}:look")
    playing = BoundedEnvironment(
        environment=player, limits=RolloutLimits(), isolation=PROCESS
    ).prepared(None)
    assert playing.prepared(None).environment is playing.environment  # a worker starts again
    session = Draws()
    outcome = loop.run_until_complete(playing.environment.play(task("-"), session))
    playing.environment.close()
    assert outcome == Outcome(reward=1.0)
    ((message,),) = [session.observed]
    assert message["content"][0]["image"] == file_of(Image.new("RGB", (4, 4), "red"))
