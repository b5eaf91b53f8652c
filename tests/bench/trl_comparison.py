"""Ballast and TRL's GRPO trainer on the same work, one after the other on the same cores.

    python tests/bench/trl_comparison.py [--steps 60] [--threads 1 2] [--rounds 1] [--venv FOLDER]

What it is: `experiment=tiny` (0.4 M parameters, float32, copying five digits; 32 prompts x 8
samples of at most 5 tokens, one on-policy update a step, no KL, an entropy bonus) run by Ballast's
console command and by `trl_grpo.py`, with the same model folder, prompts, reward and learning rate.
It prints the median seconds of a step and the reward at the end of each, for every number of
threads, and the ratio of the best medians. What it is not: a comparison at any other size.

Ballast's step samples with vLLM in its own process, scores in killable processes, trains, publishes
the weights with attestation and records every token; TRL's does all in one process, and samples
with transformers. What bare vLLM takes to sample the same batch is printed beside. A second of
Ballast is `time/step_s` of `metrics.jsonl`, or the time between the steps' records where that is
longer; TRL's is the time between the ends of its steps.

TRL lives in an environment of its own, built from requirements-trl.txt at the first run.
"""

import argparse
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rollout

from conf.compose import compose
from orchestrator.planning.sources import prepare
from workers.models.cache import cache_dir
from workers.models.tiny import build_tiny
from workers.tasks.digits import build_digits

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REQUIREMENTS = HERE / "requirements-trl.txt"
WARM_UP = 10  # steps that are not counted
LAST = 5  # steps whose reward is the reward at the end
RUN_LIMIT_S = 900.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WORK = (
    "experiment=tiny",
    "algorithm=grpo",
    "~algorithm.regularizers.kl",
    "trainer.checkpoint_every=0",
    "trainer.eval_every=0",
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run.

    Attributes:
        trainer: "Ballast" or "TRL".
        threads: of its mathematics.
        step_s: seconds of every counted step.
        reward: mean over the last steps.
    """

    trainer: str
    threads: int
    step_s: tuple[float, ...]
    reward: float

    @property
    def median_s(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.step_s)


def prepare_trl(venv: Path) -> Path:
    """Builds TRL's environment unless it is there, returns its interpreter.

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


def run(command: Sequence[str], environment: dict[str, str]) -> None:
    """Runs a trainer quietly.

    Raises:
        RuntimeError: it failed; the message ends with what it said last.
    """
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout[-3000:]}")


def measure_ballast(steps: int, threads: int, folder: Path) -> Measured:
    """Trains with the console command of this environment."""
    command = [
        *(sys.executable, "-m", "orchestrator.cli", "train", *WORK),
        f"trainer.total_steps={steps}",
        f"cluster.rollout.threads={threads}",
        f"cluster.learner.threads={threads}",
        f"output_dir={folder}",
        "run_name=ballast",
    ]
    run(command, {k: v for k, v in os.environ.items() if k not in THREAD_VARIABLES})
    lines = (folder / "ballast" / "metrics.jsonl").read_text().splitlines()
    # A line of an evaluation has no step time.
    logged: list[dict[str, Any]] = [json.loads(line) for line in lines]
    rows = [row for row in logged if "time/step_s" in row]
    own = [row["time/step_s"] for row in rows][WARM_UP:]
    between = record_intervals(folder / "ballast" / "tensorboard")[WARM_UP - 1 :]
    seconds = max(own, between, key=statistics.median) if between else own
    rewards = [row["reward/mean"] for row in rows]
    return Measured(
        trainer="Ballast",
        threads=threads,
        step_s=tuple(seconds),
        reward=statistics.fmean(rewards[-LAST:]),
    )


def record_intervals(board: Path) -> list[float]:
    """Seconds between the records of neighbouring steps, which include writing and display."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(board), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    for tags, read in (("tensors", events.Tensors), ("scalars", events.Scalars)):
        if "time/step_s" in events.Tags()[tags]:
            times = [event.wall_time for event in read("time/step_s")]
            return [after - before for before, after in itertools.pairwise(times)]
    return []


def measure_trl(python: Path, steps: int, threads: int, folder: Path) -> Measured:
    """Trains with TRL in its own environment."""
    model, prompts, out = (
        build_tiny(),
        build_digits(task="copy", length=5) / "train.parquet",
        folder / "trl.json",
    )
    command = [
        *(str(python), str(HERE / "trl_grpo.py"), "--steps", str(steps)),
        *("--model", str(model), "--prompts", str(prompts), "--out", str(out)),
    ]
    own = {name: str(threads) for name in THREAD_VARIABLES} | {"HF_HUB_OFFLINE": "1"}
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    run(command, inherited | own)
    result = json.loads(out.read_text())
    return Measured(
        trainer="TRL",
        threads=threads,
        step_s=tuple(result["step_s"][WARM_UP:]),
        reward=statistics.fmean(result["rewards"][-LAST:]),
    )


def measure_vllm(threads: int) -> float:
    """Seconds in which bare vLLM samples the batch of one step: what any loop on it takes at least.

    The same engine settings, prompts and seeds, in a process of its own, with nothing around it.
    """
    _, config = compose([*WORK, f"cluster.rollout.threads={threads}"])
    rounds = rollout.measure_bare(config, prepare(config), 12)[rollout.WARM_UP :]
    return statistics.median(seconds for seconds, _ in rounds)


def report(runs: Sequence[Measured], bare_s: float, steps: int) -> str:
    """A row per run and the ratio of the best."""
    lines = [f"{'trainer':<9}{'threads':>8}{'s/step':>9}{'p10':>9}{'p90':>9}{'reward':>9}"]
    for one in runs:
        deciles = statistics.quantiles(one.step_s, n=10)
        lines.append(
            f"{one.trainer:<9}{one.threads:>8}{one.median_s:>9.3f}{deciles[0]:>9.3f}"
            f"{deciles[-1]:>9.3f}{one.reward:>9.3f}"
        )
    best = {
        name: min((one for one in runs if one.trainer == name), key=lambda one: one.median_s)
        for name in ("Ballast", "TRL")
    }
    ballast, trl = best["Ballast"], best["TRL"]
    lines.append(
        f"\nmedian of steps {WARM_UP + 1} to {steps}, reward of the last {LAST}; the best of each: "
        f"Ballast {ballast.median_s:.3f} s with {ballast.threads} threads, TRL {trl.median_s:.3f} "
        f"s with {trl.threads}: Ballast takes {ballast.median_s / trl.median_s:.2f} of TRL's time\n"
        f"vLLM alone samples a step's batch in {bare_s:.3f} s, "
        f"{bare_s / trl.median_s:.2f} of TRL's whole step, which samples with transformers"
    )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is run")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="tried for each")
    parser.add_argument("--cores", type=int, default=2, help="that both are confined to")
    parser.add_argument("--venv", type=Path, default=cache_dir("bench") / "trl", help="of TRL")
    options = parser.parse_args()
    if options.steps < WARM_UP + LAST:
        parser.error(f"--steps {options.steps} leaves nothing to count: give {WARM_UP + LAST}")
    return options


def main() -> int:
    """Builds what is missing, runs both in turn, prints the table."""
    options = parse()
    python = prepare_trl(options.venv.expanduser().absolute())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    runs: list[Measured] = []
    for _ in range(options.rounds):
        for threads in options.threads:
            with tempfile.TemporaryDirectory() as folder:
                print(f"running both with {threads} threads", flush=True)
                runs.append(measure_ballast(options.steps, threads, Path(folder)))
                runs.append(measure_trl(python, options.steps, threads, Path(folder)))
    bare_s = min(measure_vllm(threads) for threads in options.threads)
    print(report(runs, bare_s, options.steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
