"""One run of the console command, for benchmarks that compare runs: overrides in, metrics out."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN_LIMIT_S = 1800.0
# What a measured run need not leave behind.
SPARSE = ("trainer.checkpoint_every=0", "trainer.export=false", "tracking.rollouts=false")


def train(name: str, folder: Path, *overrides: str) -> list[dict[str, float]]:
    """Trains once; returns the rows of its metrics.jsonl, of steps and of evaluations.

    Raises:
        RuntimeError: the run failed; the message ends with what it said last.
    """
    command = [
        *(sys.executable, "-m", "orchestrator.cli", "train", *overrides, *SPARSE),
        *(f"output_dir={folder}", f"run_name={name}"),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} exited {done.returncode}:\n{done.stdout[-2000:]}")
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
