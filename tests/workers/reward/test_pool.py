"""The pool under faults: hangs, deaths and nonsense cost one sample each; no process is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from workers.reward.base import RewardResult, RewardSample
from workers.reward.pool import RewardPool
from workers.reward.scorers.exact import Exact
from workers.reward.scorers.function import Function
from workers.reward.scorers.math import Math

FAULTS = """
import ctypes, os, subprocess, sys, time

def reward(prompt, response, ground_truth, **columns):
    if response == "loop":
        while True:
            pass
    if response == "sleep":
        ctypes.PyDLL(None).sleep(60)  # holds the interpreter lock: no thread or signal gets in
    if response == "exit":
        os._exit(3)
    if response == "segfault":
        ctypes.string_at(0)
    if response == "raise":
        raise KeyError("missing\\nkey")
    if response == "sysexit":
        sys.exit(1)
    if response == "nan":
        return float("nan")
    if response == "print":
        print("x" * 1_000_000)
        os.write(1, b'["scored", 99.0, {}, 0.0]\\n' * 10)
        return 0.5
    if response == "grow":
        kept = []
        while True:
            kept.append(bytearray(1 << 24))
    if response == "long":
        raise ValueError("y" * 10_000_000)
    if response == "stdin":
        return len(sys.stdin.read())
    if response == "once":
        if not os.path.exists(ground_truth):
            open(ground_truth, "w").close()
            os._exit(1)
        return 1.0
    if response == "orphan":
        left = subprocess.Popen(["sleep", "600"])
        with open(ground_truth, "w") as file:
            file.write(str(left.pid))
        while True:
            pass
    return float(response)
"""


@pytest.fixture
def faulty(tmp_path: Path) -> Function:
    (tmp_path / "faults.py").write_text(FAULTS)
    return Function(path=f"{tmp_path}/faults.py:reward")


@pytest.fixture
def pool(faulty: Function) -> Iterator[RewardPool]:
    with RewardPool(faulty, num_processes=1, timeout_s=0.5) as pool:
        yield pool


def samples(*responses: str, ground_truth: str = "5") -> list[RewardSample]:
    return [RewardSample(prompt="", response=r, ground_truth=ground_truth) for r in responses]


def score(pool: RewardPool, *responses: str) -> list[RewardResult]:
    return asyncio.run(pool.score(samples(*responses)))


def scoring_processes() -> list[psutil.Process]:
    """Children of this process that score."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if any(Path(argument).name == "child.py" for argument in process.cmdline()):
                found.append(process)
    return found


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_end(pids: list[int], *, within_s: float = 10.0) -> bool:
    """Wait until no process lives; False if one outlives the limit."""
    deadline = time.monotonic() + within_s
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def test_order_is_kept_over_processes() -> None:
    many = [
        RewardSample(prompt="", response=str(i % 7), ground_truth="5", columns={"i": i})
        for i in range(300)
    ]
    with RewardPool(Exact(), num_processes=3) as pool:

        async def twice() -> list[list[RewardResult]]:
            return await asyncio.gather(pool.score(many), pool.score(many[:11]))

        first, second = asyncio.run(twice())
    assert [r.reward for r in first] == [float(i % 7 == 5) for i in range(300)]
    assert [r.reward for r in second] == [float(i == 5) for i in [*range(7), *range(4)]]
    assert {r.outcome for r in first} == {"scored"}


def test_trivial_samples_cost_little() -> None:
    many = samples(*["5"] * 256)
    with RewardPool(Exact()) as pool:
        best = 9.0
        for _ in range(5):
            began = time.perf_counter()
            asyncio.run(pool.score(many))
            best = min(best, time.perf_counter() - began)
    assert best < 0.3  # 0.02 s alone; a process per sample would take ten times this


@pytest.mark.parametrize("fault", ["loop", "sleep"])
def test_a_hang_costs_one_sample(pool: RewardPool, fault: str) -> None:
    began = time.perf_counter()
    results = score(pool, "1", fault, "2", "3")
    assert [r.outcome for r in results] == ["scored", "failed:timeout", "scored", "scored"]
    assert [r.reward for r in results] == [1.0, None, 2.0, 3.0]
    assert time.perf_counter() - began < 10.0  # the limit is 0.5 s


@pytest.mark.parametrize("fault", ["exit", "segfault"])
def test_a_death_costs_one_sample(pool: RewardPool, fault: str) -> None:
    results = score(pool, "1", fault, "2")
    assert [r.outcome for r in results] == ["scored", "failed:worker died", "scored"]
    assert [r.reward for r in results] == [1.0, None, 2.0]


def test_a_death_is_retried_once(pool: RewardPool, tmp_path: Path) -> None:
    results = asyncio.run(pool.score(samples("1", "once", ground_truth=str(tmp_path / "flag"))))
    assert [r.reward for r in results] == [1.0, 1.0]


def test_errors_and_nonsense(pool: RewardPool) -> None:
    results = score(pool, "raise", "nan", "sysexit", "long", "print", "stdin", "0.25")
    assert [r.outcome[:40] for r in results] == [
        "failed:KeyError: 'missing\\nkey'",
        "failed:non-finite reward nan",
        "failed:SystemExit: 1",
        "failed:ValueError: " + "y" * 21,
        "scored",
        "scored",
        "scored",
    ]
    assert len(results[3].outcome) < 400
    assert [r.reward for r in results[4:]] == [0.5, 0.0, 0.25]  # prints did not reach the parent


def test_a_scorer_that_allocates_without_end_costs_one_sample(faulty: Function) -> None:
    with RewardPool(faulty, num_processes=1, timeout_s=20.0, max_memory_mib=256) as pool:
        (process,) = scoring_processes()
        results = score(pool, "1", "grow", "2", "grow", "3")
        assert (scoring_processes(), process.is_running()) == ([process], True)
        assert process.memory_info().rss < 256 << 20
    outcomes = ["scored", "failed:MemoryError:", "scored", "failed:MemoryError:", "scored"]
    assert [r.outcome.strip() for r in results] == outcomes


def test_many_faults_in_parallel(faulty: Function) -> None:
    responses = ["1", "exit", "loop", "raise"] * 4
    with RewardPool(faulty, num_processes=2, timeout_s=0.3) as pool:
        results = score(pool, *responses)
    outcomes = [
        "scored",
        "failed:worker died",
        "failed:timeout",
        "failed:KeyError: 'missing\\nkey'",
    ]
    assert [r.outcome for r in results] == outcomes * 4


def test_a_killed_scorer_takes_its_own_children_along(pool: RewardPool, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    (result,) = asyncio.run(pool.score(samples("orphan", ground_truth=str(told))))
    assert result.outcome == "failed:timeout"
    assert all_end([int(told.read_text())])


def test_close_leaves_no_process_and_ends_calls(faulty: Function) -> None:
    pool = RewardPool(faulty, num_processes=2, timeout_s=60.0)
    assert len(scoring_processes()) == 2

    async def close_while_scoring() -> None:
        call = asyncio.ensure_future(pool.score(samples("loop", "1", "loop", "loop")))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(pool.close)
        with pytest.raises(RuntimeError, match="the reward pool was closed"):
            await asyncio.wait_for(call, 5)

    asyncio.run(close_while_scoring())
    assert scoring_processes() == []
    pool.close()
    with pytest.raises(RuntimeError, match="the reward pool is closed"):
        score(pool, "1")


def test_a_cancelled_call_leaves_the_pool_usable(pool: RewardPool) -> None:
    async def cancel() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(pool.score(samples("loop", "1")), 0.1)

    asyncio.run(cancel())
    assert score(pool, "2")[0].reward == 2.0


def test_children_end_with_their_parent(tmp_path: Path, faulty: Function) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio, threading, time, sys\n"
        "from workers.reward.base import RewardSample\n"
        "from workers.reward.scorers.function import Function\n"
        "from workers.reward.pool import RewardPool\n"
        f"pool = RewardPool(Function(path={faulty.path!r}), num_processes=2, timeout_s=600.0)\n"
        "print(*[p._process.pid for p in pool._processes], flush=True)\n"
        "asyncio.run(pool.score([RewardSample(prompt='', response='loop')]))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=env)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    time.sleep(0.3)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert all_end(pids)


def test_a_scorer_that_prepares_slowly_is_not_timed_out() -> None:
    with RewardPool(Math(), timeout_s=0.5) as pool:  # importing sympy alone may take longer
        results = asyncio.run(pool.score(samples("\\boxed{5}", "\\boxed{10/2}", "6")))
    assert [r.reward for r in results] == [1.0, 1.0, 0.0]


def test_what_is_refused_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="num_processes must be at least 1, got 0"):
        RewardPool(Exact(), num_processes=0)
    with pytest.raises(ValueError, match="timeout_s must be positive and finite, got -1"):
        RewardPool(Exact(), timeout_s=-1)
    with pytest.raises(ValueError, match="scorer must be callable, got 'exact'"):
        RewardPool("exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be sent to a scoring process"):
        RewardPool(lambda sample: 1.0)
    here = types.ModuleType("only_in_this_process")
    exec("class Scorer:\n    def __call__(self, sample):\n        return 1.0", here.__dict__)
    monkeypatch.setitem(sys.modules, here.__name__, here)
    with pytest.raises(RuntimeError, match="No module named 'only_in_this_process'"):
        RewardPool(here.Scorer())
    assert scoring_processes() == []


def test_no_samples(pool: RewardPool) -> None:
    assert asyncio.run(pool.score([])) == []


def test_the_limit_counts_from_the_start_of_scoring(faulty: Function) -> None:
    """Twelve calls of 0.2 s wait behind one another in one process: 2.4 s, with a limit of 1 s."""
    slow = faulty.path.replace("faults.py", "slow.py")
    Path(slow.partition(":")[0]).write_text(
        "import time\ndef reward(response):\n    time.sleep(0.2)\n    return float(response)\n"
    )
    with RewardPool(Function(path=slow), num_processes=1, timeout_s=1.0) as pool:
        results = score(pool, *["1"] * 12)
        assert [result.outcome for result in results] == ["scored"] * 12
        assert pool.num_settled == 12


BATCH = """
import time

class Reward:
    batches = True

    def __call__(self, samples):
        time.sleep(0.2)
        if any(sample.response == "hang" for sample in samples):
            time.sleep(60)
        bad = ValueError("bad")
        return [bad if s.response == "bad" else float(len(samples)) for s in samples]
"""


def test_a_scorer_of_batches_gets_what_waits_of_all_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request is scored alone; the others, which wait meanwhile, in one call."""
    (tmp_path / "batch_reward.py").write_text(BATCH)
    monkeypatch.syspath_prepend(str(tmp_path))
    import batch_reward  # type: ignore[import-not-found]

    async def run(pool: RewardPool) -> list[RewardResult]:
        first = asyncio.create_task(pool.score([response("0")]))
        await asyncio.sleep(0.1)
        others = [pool.score([response(text)]) for text in ("1", "bad", "3")]
        return [result for results in await asyncio.gather(first, *others) for result in results]

    with RewardPool(batch_reward.Reward(), timeout_s=30.0) as pool:
        results = asyncio.run(run(pool))
    assert [result.reward for result in results] == [1.0, 3.0, None, 3.0]
    assert results[2].outcome == "failed:ValueError: bad"
    with RewardPool(batch_reward.Reward(), timeout_s=1.0) as pool:
        hung, scored = asyncio.run(pool.score([response("hang"), response("1")]))
    assert (hung.outcome, scored.reward) == ("failed:timeout", 1.0)


def response(text: str) -> RewardSample:
    return RewardSample(prompt="", response=text)
