"""10,000 samples, one in fifty of which hangs, crashes, allocates without end or raises."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Self

import psutil
import pytest

from workers.reward.base import RewardResult, RewardSample
from workers.reward.pool import RewardPool
from workers.reward.scorers.function import Function

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NUM_SAMPLES, ONE_IN = 10_000, 50
FAULTS = ("hang", "crash", "grow", "raise")
NUM_PROCESSES, TIMEOUT_S, MEMORY_MIB = 8, 1.0, 256
SCORER = """
import os
import time

def reward(response, ground_truth):
    if response == "hang":
        time.sleep(600)
    if response == "crash":
        os._exit(3)
    if response == "grow":
        kept = []
        while True:
            kept.append(bytearray(1 << 24))
    if response == "raise":
        raise KeyError("missing")
    time.sleep(0.05)
    descriptor = os.open(ground_truth, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, response.encode() + b"\\n")
    os.close(descriptor)
    return 1.0
"""
REASONS = {
    "hang": "failed:timeout",
    "crash": "failed:worker died",
    "grow": "failed:MemoryError:",
    "raise": "failed:KeyError: 'missing'",
}


class Memory:
    """Largest resident memory of this process and its descendants together, sampled, in MiB."""

    def __init__(self) -> None:
        self.peak, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def now(self) -> float:
        found = psutil.Process()
        total = found.memory_info().rss
        for child in found.children(recursive=True):
            try:
                total += child.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self.peak = max(self.peak, self.now())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def responses() -> list[str]:
    """Number of each sample, or its fault: every fiftieth has one, each kind as often."""
    return [
        FAULTS[number // ONE_IN % len(FAULTS)] if number % ONE_IN == 0 else str(number)
        for number in range(NUM_SAMPLES)
    ]


def timed(scorer: Function, wanted: list[str], log: Path) -> tuple[list[RewardResult], float]:
    samples = [RewardSample(prompt="", response=each, ground_truth=str(log)) for each in wanted]
    with RewardPool(
        scorer, num_processes=NUM_PROCESSES, timeout_s=TIMEOUT_S, max_memory_mib=MEMORY_MIB
    ) as pool:
        began = time.perf_counter()
        results = asyncio.run(pool.score(samples))
        return results, time.perf_counter() - began


def test_one_bad_sample_in_fifty_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "scorer.py").write_text(SCORER)
    scorer = Function(path=f"{tmp_path}/scorer.py:reward")
    wanted = responses()
    good = [each for each in wanted if each not in FAULTS]
    assert Counter(each for each in wanted if each in FAULTS) == dict.fromkeys(FAULTS, 50)

    alone, alone_s = timed(scorer, good, tmp_path / "alone")
    assert all(result.reward == 1.0 for result in alone)
    memory = Memory()
    before = memory.now()
    with memory:
        results, together_s = timed(scorer, wanted, tmp_path / "together")

    for response, result in zip(wanted, results, strict=True):
        if response in FAULTS:
            assert (result.outcome.strip(), result.reward) == (REASONS[response], None)
        else:
            assert (result.outcome, result.reward) == ("scored", 1.0)
    assert Counter((tmp_path / "together").read_text().split()) == dict.fromkeys(good, 1)
    assert [child for child in psutil.Process().children() if child.is_running()] == []
    after = memory.now()
    print(
        f"\n{len(good)} good samples {alone_s:.1f} s, with {len(wanted) - len(good)} bad ones "
        f"{together_s:.1f} s: {together_s / alone_s:.2f} x; "
        f"memory {before:.0f} MiB before, at most {memory.peak:.0f}, {after:.0f} after"
    )
    assert together_s < 1.5 * alone_s
    assert after < before + 64
    assert memory.peak < before + NUM_PROCESSES * MEMORY_MIB
