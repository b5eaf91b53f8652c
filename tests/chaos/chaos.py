"""Chaos: the tiny experiment under random faults, and what is left of it at the end.

    python -m tests.chaos.chaos [--trials 8] [--minutes M] [--seed 0] [--journal FILE] [--write]

Each run has a random schedule and a random arrangement, and carries several trials: at a random
moment a random process is killed, stopped, or cut off for a while. A run that ends is resumed. Then
it is stopped, and its ledger, its record and the attestations of its weights are checked. Run k has
the seed `--seed` + k; the same seed draws the same schedule, victims, faults and delays.

With a journal the runs are counted together with those that it holds, so that many trials may be
played in several sittings; `--trials 0` counts only.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.checks import violations
from tests.chaos.journal import Played, Trial, table
from tests.chaos.nodes import TwoNodes
from tests.chaos.processes import MARK, end_all, marked, of_role, strike

ROOT = Path(__file__).resolve().parents[2]
README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"
TRIALS_PER_RUN = 4
START_S = 240.0
HANG_S = 240.0  # without a step and without an end
COMMON = (
    "experiment=tiny",
    *("algorithm=grpo", "~algorithm.regularizers.kl", "trainer.total_steps=100000"),
    *("trainer.prompts_per_step=8", "rollout.samples_per_prompt=4", "trainer.checkpoint_every=3"),
    *("data.eval_limit=4", "trainer.eval_every=0", "trainer.export=false", "resume=auto"),
    *("cluster.timeouts.start_s=120", "cluster.timeouts.request_s=10"),
    *("cluster.timeouts.engine_s=20", "cluster.timeouts.publish_s=40"),
    *("cluster.timeouts.place_s=20", "cluster.timeouts.train_s=45"),
    "cluster.timeouts.checkpoint_s=45",
)
BOTH = ("engine worker", "EngineCore", "reward worker", "reward child", "learner rank")
ROLES = (*BOTH, "recorder", "driver")
ASYNC = ("schedule=async", "schedule.max_staleness=2", "algorithm/correction=tis")
ARRANGEMENTS = {
    "sync": (("rollout.num_engines=2",), ROLES),
    "one step off": (
        ("schedule=one_step_off", "algorithm/correction=tis", "rollout.num_engines=2"),
        ROLES,
    ),
    "async": ((*ASYNC, "rollout.num_engines=2"), ROLES),
    "async, two ranks": ((*ASYNC, "learner.num_ranks=2", "learner.zero_stage=2"), ROLES),
    "colocated": (("cluster.colocated=true",), ROLES),
    "wide engine": (("rollout.tensor_parallel_size=2",), (*ROLES, "engine's TP worker")),
    "two nodes": ((*ASYNC, "rollout.num_engines=2"), (*ROLES, "raylet of a node")),
}
FAULTS = ("killed", "stopped", "cut off")


@dataclass
class Run:
    """A run of the command, over all of its resumptions."""

    folder: Path
    overrides: tuple[str, ...]
    environ: dict[str, str]
    process: Any = None
    steps: int = 0  # lines of steps, of all resumptions
    output: list[str] = field(default_factory=list)

    @property
    def log(self) -> str:
        return "".join(self.output)

    def start(self) -> None:
        command = [sys.executable, "-m", "orchestrator.cli", "train", *COMMON, *self.overrides]
        self.process = subprocess.Popen(
            [*command, f"output_dir={self.folder}", "run_name=run"],
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: Any) -> None:
        for line in process.stdout:
            self.output.append(line)
            self.steps += line.startswith("step ")

    def wait_for_steps(self, count: int, limit_s: float) -> str:
        """Wait for further steps; return "steps", "end", or "hang"."""
        wanted, deadline, seen = self.steps + count, time.monotonic() + limit_s, self.steps
        while time.monotonic() < deadline:
            if self.steps >= wanted:
                return "steps"
            if self.process.poll() is not None:
                return "end"
            if self.steps > seen:
                seen, deadline = self.steps, time.monotonic() + limit_s
            time.sleep(0.1)
        return "hang"


class Chaos:
    """One run with its trials."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random, self.seed = random.Random(seed), seed
        self.arrangement = self.random.choice(sorted(ARRANGEMENTS))
        overrides, self.roles = ARRANGEMENTS[self.arrangement]
        self.mark = f"{os.getpid()}-{seed}"
        environ = {**os.environ, MARK: self.mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.nodes = None
        if self.arrangement == "two nodes":
            self.nodes = TwoNodes(environ, folder)
            overrides = (*overrides, f"cluster.address={self.nodes.address}")
        self.run = Run(folder=folder, overrides=overrides, environ=environ)
        self.trials: list[Trial] = []
        self.wrong: list[str] = []

    def play(self, count: int) -> None:
        """Play some trials, stop the run, and check what it left."""
        try:
            self._start()
            for _ in range(count):
                self._try()
            self._stop()
            self.wrong += violations(self.run.folder / "run")
        except RuntimeError as error:
            self.wrong.append(str(error))
        finally:
            if self.nodes is not None:
                self.nodes.end()
            end_all(self.mark)

    def _start(self) -> None:
        """Start or resume, until the second step from here."""
        for _ in range(3):  # another fault may show only now
            self.run.start()
            if self.run.wait_for_steps(2, START_S) == "steps":
                return
            self._end_leftovers()
        raise RuntimeError(f"it did not start again: {self.run.log[-600:]}")

    def _try(self) -> None:
        role = self.random.choice(self.roles)
        faults = FAULTS if role != "driver" else ("killed", "cut off")  # nobody waits for a driver
        fault, delay = self.random.choice(faults), self.random.uniform(0.0, 3.0)
        seconds, number = self.random.uniform(3.0, 30.0), self.random.randrange(100)
        time.sleep(delay)
        found = self._victims(role)
        if not found:
            return
        began = time.monotonic()
        strike(found[number % len(found)], fault, seconds=seconds)
        outcome = {"steps": "went on", "end": "resumed", "hang": "hung"}[
            self.run.wait_for_steps(2, HANG_S)
        ]
        if self.nodes is not None:
            self.nodes.mend()
        if outcome != "went on":
            if outcome == "hung":
                self.wrong.append(f"{role} {fault}: no step in {HANG_S:g} s: {self.run.log[-300:]}")
            self._end_leftovers()
            self._start()
        trial = Trial(
            seed=self.seed,
            arrangement=self.arrangement,
            role=role,
            fault=fault,
            outcome=outcome,
            seconds=time.monotonic() - began,
        )
        self.trials.append(trial)
        print(
            f"  seed {self.seed}  {self.arrangement:<17}{role:<19}{fault:<9}{outcome:<9}"
            f"{trial.seconds:4.0f} s",
            flush=True,
        )

    def _victims(self, role: str) -> list[Any]:
        if role == "raylet of a node":
            return self.nodes.raylets()
        deadline = time.monotonic() + 30.0
        while not (found := of_role(role, self.mark)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _end_leftovers(self) -> None:
        """End what an ended run has left, which only a killed driver or a hang may leave."""
        if self.run.process.poll() is None:
            self.run.process.kill()
        self.run.process.wait()
        deadline = time.monotonic() + 30.0
        kept = set() if self.nodes is None else self.nodes.processes()
        while time.monotonic() < deadline:
            if not {process.pid for process in marked(self.mark)} - kept:
                return
            time.sleep(0.5)
        for process in marked(self.mark):
            if process.pid not in kept:
                process.kill()

    def _stop(self) -> None:
        for _ in range(3):
            self.run.process.send_signal(signal.SIGTERM)
            try:
                code = self.run.process.wait(timeout=HANG_S)
            except subprocess.TimeoutExpired:
                self.wrong.append(f"a request to stop was not heard: {self.run.log[-300:]}")
                code = None
            if code == 143:
                return
            self._end_leftovers()
            self._start()
        raise RuntimeError(f"it did not stop with a checkpoint: {self.run.log[-600:]}")


def play(seed: int, count: int) -> Played:
    """Play one run, and print what came of it."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    chaos = Chaos(seed, folder)
    chaos.play(count)
    (folder / "log").write_text(chaos.run.log)
    print(f"seed {seed}: {len(chaos.wrong)} violations, {chaos.run.steps} steps, {folder}")
    for text in chaos.wrong:
        print(f"  WRONG {text}", flush=True)
    wrong = [f"seed {seed} ({chaos.arrangement}): {text}" for text in chaos.wrong]
    return Played(seed=seed, trials=chaos.trials, wrong=wrong)


def main() -> int:
    """Play trials until there are enough, or the time is over; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--journal", type=Path, help="JSON lines, one per run; appended to")
    parser.add_argument("--write", action="store_true", help="into tests/chaos/README.md")
    options = parser.parse_args()
    played: list[Played] = []
    if options.journal and options.journal.exists():
        played = [Played.read(line) for line in options.journal.read_text().splitlines()]
    left, began, seed = options.trials, time.monotonic(), options.seed
    while left > 0 and time.monotonic() - began < 60 * options.minutes:
        run = play(seed, min(TRIALS_PER_RUN, left))
        played.append(run)
        if options.journal:
            with options.journal.open("a") as journal:
                journal.write(run.line())
        left -= len(run.trials)
        seed += 1
    trials = [trial for run in played for trial in run.trials]
    wrong = [text for run in played for text in run.wrong]
    shown = table(trials, wrong, len(played))
    print(shown)
    if options.write:
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n{shown}\n{END}{rest.partition(END)[2]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
