"""The plan of a rank's memory against the peak of a rank on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "rank_memory.py"


@pytest.mark.slow
def test_the_plan_is_within_15_percent_of_the_peak_of_a_rank():
    modes = ["float32", "adapter, float32", "adapter, bfloat16"]
    command = [sys.executable, str(BENCH), "--sizes", "42 M", "--modes", *modes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert not done.returncode, done.stderr[-3000:]
    ratios = [float(line.split("|")[-2]) for line in done.stdout.splitlines()[2:]]
    assert len(ratios) == 3
    assert all(0.85 <= ratio <= 1.15 for ratio in ratios), done.stdout
