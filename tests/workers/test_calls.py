"""Calls name their method to mypy: a wrong name, argument or class is found before a run is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from workers.calls import Call, bind
from workers.worker_group import WorkerGroup

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
from typing import Any

from workers.calls import bind
from workers.worker_group import WorkerGroup


class Rank:
    def load(self, folder: str) -> int:
        return len(folder)


class Learner(Rank):
    async def probe(self, tokens: list[int], *, base: bool = False) -> dict[str, float]:
        return {}

    def train(self, plan: int, *computed: float) -> tuple[bytes, str]:
        return b"", ""


learner: WorkerGroup[Learner]
ranks: WorkerGroup[Rank] = learner
reveal_type(learner.call(bind(Learner.probe, [1], base=True), timeout_s=1.0))
reveal_type(learner.call_first(bind(Rank.load, "x"), timeout_s=1.0))
reveal_type(learner.start_pairs([bind(Learner.train, 1, 0.5)], timeout_s=1.0))
reveal_type(learner.start(bind(Learner.load, "x"), timeout_s=1.0).survivors())
learner.call(bind(Learner.prob, [1]), timeout_s=1.0)
learner.call(bind(Learner.probe, "x"), timeout_s=1.0)
learner.call(bind(Learner.probe, [1], bas=True), timeout_s=1.0)
learner.call(bind(Rank.load), timeout_s=1.0)
ranks.call(bind(Learner.probe, [1]), timeout_s=1.0)
learner.call("load", timeout_s=1.0)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What mypy says of each statement of the program, by its first line."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "program.py").write_text(PROGRAM)
    command = ["mypy", "--config-file", str(ROOT / "pyproject.toml"), "program.py"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--no-error-summary"],
        cwd=folder,
        env={"MYPYPATH": str(ROOT), "MYPY_CACHE_DIR": str(folder / "cache"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines, found = PROGRAM.splitlines(), {}
    for number, text in re.findall(r"^program\.py:(\d+): (.*)$", done.stdout, re.MULTILINE):
        found.setdefault(lines[int(number) - 1], []).append(text)
    assert found, done.stdout + done.stderr
    return found


@pytest.mark.parametrize(
    ("statement", "answer"),
    [
        ("learner.call(bind(Learner.probe, [1], base=True)", "list[dict[str, float]]"),
        ('learner.call_first(bind(Rank.load, "x")', "int"),
        ("learner.start_pairs(", "tuple[list[Awaitable[bytes]], Pending[str]]"),
        ('learner.start(bind(Learner.load, "x")', "dict[int, int]"),
    ],
)
def test_mypy_knows_what_a_call_answers(said, statement, answer):
    (found,) = [
        texts for line, texts in said.items() if line.startswith(f"reveal_type({statement}")
    ]
    (text,) = found
    assert re.sub(r"\w+\.(?=\w)", "", text) == f'note: Revealed type is "{answer}"'


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("learner.call(bind(Learner.prob, [1])", '"type[Learner]" has no attribute "prob"'),
        ('learner.call(bind(Learner.probe, "x")', "No overload variant"),
        ("learner.call(bind(Learner.probe, [1], bas=True)", 'Unexpected keyword argument "bas"'),
        ("learner.call(bind(Rank.load)", "No overload variant"),
        ("ranks.call(bind(Learner.probe, [1])", "No overload variant"),
        ('learner.call("load"', 'has incompatible type "str"; expected "Call['),
    ],
)
def test_mypy_refuses_a_wrong_method_argument_or_class(said, statement, error):
    (found,) = [texts for line, texts in said.items() if line.startswith(statement)]
    assert any(text.startswith("error: ") and error in text for text in found), found


class Handle:
    """In the place of an actor's handle: notes its calls, and answers two values where asked to."""

    def __init__(self, calls):
        self._calls, self._num_returns = calls, 1

    def __getattr__(self, method):
        self._method = method
        return self

    def options(self, *, num_returns):
        self._num_returns = num_returns
        return self

    def remote(self, *args, **kwargs):
        self._calls.append((self._method, args, kwargs))
        number = len(self._calls)
        return f"ref {number}" if self._num_returns == 1 else (f"ref {number}", f"done {number}")


class Worker:
    def load(self, folder, *, fast=False):
        pass

    def train(self, plan):
        return None, None


def test_a_bound_method_is_its_name_and_arguments():
    assert bind(Worker.load, "x", fast=True) == Call("load", ("x",), {"fast": True})


def test_every_rank_is_called_with_its_own_arguments_under_its_own_number():
    calls = []
    group = WorkerGroup("learner", {1: Handle(calls), 4: Handle(calls)})
    pending = group.start_each([bind(Worker.load, name) for name in "ab"], timeout_s=3.0)
    assert calls == [("load", ("a",), {}), ("load", ("b",), {})]
    assert (pending.role, pending.method, pending.timeout_s) == ("learner", "load", 3.0)
    assert (pending.ranks, pending.refs) == ([1, 4], ["ref 1", "ref 2"])
    with pytest.raises(ValueError, match="zip"):
        group.start_each([bind(Worker.load, "a")], timeout_s=3.0)


def test_of_two_answers_the_second_is_waited_for():
    calls = []
    group = WorkerGroup("learner", [Handle(calls), Handle(calls)])
    firsts, pending = group.start_pairs([bind(Worker.train, 5)] * 2, timeout_s=3.0)
    assert calls == [("train", (5,), {})] * 2
    assert (firsts, pending.refs) == (["ref 1", "ref 2"], ["done 1", "done 2"])


def test_a_group_without_workers_answers_nothing_at_once():
    assert WorkerGroup("rollout", []).call(bind(Worker.load, "x"), timeout_s=0.0) == []


def test_actors_are_called_in_one_module():
    calling = {
        str(path.relative_to(ROOT))
        for package in ("algorithms", "conf", "orchestrator", "workers")
        for path in (ROOT / package).rglob("*.py")
        if ".remote(" in re.sub(r"ray\.remote\(", "", path.read_text())
    }
    tasks = {  # functions that run beside the actors, without one
        "orchestrator/checkpoints/recorder.py",
        "orchestrator/cluster/batch_keeper.py",
        "orchestrator/supply/group_files.py",
        "orchestrator/supply/recording.py",
    }
    assert calling == {"workers/worker_group.py", *tasks}
