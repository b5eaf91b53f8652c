"""Start the programs of `peers.py`, one at a time, and read what each of them recorded.

Every function returns the same mapping: `began`, `first_step` and `ends` (of every step) in seconds
of the wall clock, `tokens` and `rewards` of every step, and Ballast's also `phases`. Compares
nothing.
"""

import functools
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
from programs.works import ALIKE, Work, job

from conf.compose import compose
from orchestrator.planning.sources import prepare

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
REQUIREMENTS = HERE.parent / "requirements-trl.txt"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
VLLM_BATCHES = 20  # at most
# Parts of Ballast's step; that of publish which is no publication is attestation.
PHASES = {
    **{name: f"time/{name}_s" for name in ("generate", "score", "train", "account", "other")},
    "publish": "publication/total_s",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One work as one run does it."""

    work: Work
    steps: int
    threads: int
    limit_s: float

    @property
    def overrides(self) -> list[str]:
        """Of Ballast's command."""
        return [
            *self.work.overrides,
            *ALIKE,
            f"trainer.total_steps={self.steps}",
            f"cluster.rollout.threads={self.threads}",
            f"cluster.learner.threads={self.threads}",
        ]

    @functools.cached_property
    def composed(self) -> tuple[Any, Any]:
        """The checked configuration, and model and prompts, built if they are missing."""
        _, config = compose(self.overrides)
        return config, prepare(config)


def prepare_trl(venv: Path) -> Path:
    """Build TRL's environment unless it is there, return its interpreter.

    Raises:
        RuntimeError: pip could not install a requirement.
    """
    python, stamp = venv / "bin" / "python", venv / "ballast-stamp"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"building {venv} for TRL, a few minutes", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    install = [str(python), "-m", "pip", "install", "--no-deps", "-r", str(REQUIREMENTS)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"pip could not install {REQUIREMENTS.name}:\n{done.stderr[-2000:]}\n"
            "torch==2.13.0+cpu needs PyTorch's CPU wheel index among pip's sources"
        )
    stamp.write_text(wanted)
    return python


def run(command: Sequence[str], limit_s: float, **environment: str) -> float:
    """Run a program quietly, return the time at which it was started.

    Raises:
        RuntimeError: it failed; the message ends with what it said last.
        subprocess.TimeoutExpired: it took longer than `limit_s`, and was killed with its children.
    """
    dropped = (*THREAD_VARIABLES, "PYTHONPATH", "PYTHONHOME")
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    with tempfile.TemporaryFile("w+") as said:
        began = time.time()
        process = subprocess.Popen(
            command, cwd=ROOT, env=inherited | environment, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(limit_s)
        except BaseException:
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
            process.kill()
            process.wait()
            raise
        if code:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} exited {code}:\n{said.read()[-3000:]}")
    return began


def train_ballast(setting: Setting, folder: Path) -> dict[str, Any]:
    """Train with the console command of this environment; read what the run recorded."""
    command = [
        *(sys.executable, "-m", "orchestrator.cli", "train", *setting.overrides),
        *(f"output_dir={folder}", "run_name=ballast"),
    ]
    began = run(command, setting.limit_s, PYTHONPATH=str(ROOT))
    found = folder / "ballast"
    events = json.loads((found / "trace.json").read_text())
    steps = [event for event in events if event.get("name", "").startswith("step ")]
    logged = [json.loads(line) for line in (found / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in logged if "time/step_s" in row]  # an evaluation's line has none
    counted = rows[setting.work.warm_up :]
    recorded = sorted((found / "rollouts").glob("*.parquet"))
    lengths = [pc.list_value_length(pq.read_table(file)["tokens"]) for file in recorded]
    parts = {name: [row.get(metric, 0.0) for row in counted] for name, metric in PHASES.items()}
    parts["attest"] = [
        row["time/publish_s"] - row.get("publication/total_s", 0.0) for row in counted
    ]
    return {
        "began": began,
        "first_step": steps[0]["ts"] / 1e6,
        "ends": [(event["ts"] + event["dur"]) / 1e6 for event in steps],
        "tokens": [pc.sum(step).as_py() for step in lengths],
        "rewards": [row["reward/mean"] for row in rows],
        "phases": {name: statistics.median(values) for name, values in parts.items()},
    }


def train_beside(python: Path, script: str, setting: Setting, folder: Path) -> dict[str, Any]:
    """Train with a program of `programs/`, in the environment of an interpreter."""
    task, result = folder / "job.json", folder / "result.json"
    task.write_text(json.dumps(job(setting.work, *setting.composed, steps=setting.steps)))
    command = [
        *(str(python), str(HERE / script)),
        *("--job", str(task), "--out", str(result)),
    ]
    threads = dict.fromkeys(THREAD_VARIABLES, str(setting.threads))
    began = run(command, setting.limit_s, HF_HUB_OFFLINE="1", **threads)
    return {"began": began, **json.loads(result.read_text())}


def sample_alone(setting: Setting) -> dict[str, Any]:
    """Sample batches with vLLM alone, with the engine's settings of Ballast's run."""
    from rollout import bare_vllm

    began = time.time()
    config, sources = setting.composed
    batches = min(setting.steps, VLLM_BATCHES)
    with bare_vllm(config, sources) as batch:
        found = [batch(number) for number in range(batches)]
    first_step = time.time() - sum(one.seconds for one in found)
    return {
        "began": began,
        "first_step": first_step,
        "ends": [first_step + end for end in itertools.accumulate(one.seconds for one in found)],
        "tokens": [one.prompt_tokens + one.sampled_tokens for one in found],
        "rewards": [],
    }
