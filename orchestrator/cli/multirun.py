"""Train several runs by one command: `ballast train --multirun algorithm=grpo,dapo seed=1,2`.

Hydra's sweeps (`a,b`, `range(1,4)`, `glob(*)`) give the combinations. Every run is a process of its
own, `ballast train` with its overrides, in a folder `<output_dir>/<run_name>/<its choices>`; runs
follow each other, or `--parallel` of them go side by side. Runs in the process of the command,
which drives no run itself.
"""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate

from conf.compose import compose
from orchestrator.comparison.overview import row, runs_in, table
from orchestrator.planning import plan
from orchestrator.report.run_record import read_run
from orchestrator.stop import EXIT_CODE, SIGNALS
from orchestrator.telemetry.counting import counted

LOG = "driver.log"  # output of a run that goes side by side with others
POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a sweep.

    Example:
        PlannedRun(
            folder=Path("runs/quickstart/algorithm-grpo_seed-1"),
            overrides=("algorithm=grpo", "seed=1", "run_name=algorithm-grpo_seed-1"),
        )
    """

    folder: Path
    overrides: tuple[str, ...]


def train_all(
    overrides: Sequence[str], config_dir: str | None, dry_run: bool, parallel: int
) -> int:
    """Check every combination, then train each; return 1 if a run failed.

    Raises:
        ValueError: no override has several values, a combination can't run, or `parallel` is less
            than 1; nothing was started.
    """
    if parallel < 1:
        raise ValueError(f"--parallel {parallel}: must be at least 1")
    folder = None if config_dir is None else str(Path(config_dir).absolute())
    runs = plan_runs(overrides, folder)
    print(f"{counted(len(runs), 'run')} in {runs[0].folder.parent}:")
    for run in runs:
        print(f"  {run.folder.name}")
    if dry_run:
        return 0
    command = [sys.executable, "-m", "orchestrator.cli", "train"]
    command += [] if folder is None else ["--config-dir", folder]
    codes = RunProcesses(command, parallel).run(runs)
    found = [path for run in runs for path in _made(run)]
    if found:
        print(table([row(read_run(path), goal=None) for path in runs_in(found)]))
    failed = [run.folder.name for run, code in zip(runs, codes, strict=True) if code]
    if failed:
        print(f"not finished: {', '.join(failed)}; resume=auto goes on with what is saved")
    stopped = [code for code in codes if code is not None and code > 128]
    return max(stopped, default=1 if failed else 0)


def plan_runs(overrides: Sequence[str], config_dir: str | None) -> list[PlannedRun]:
    """Return the runs of all combinations, each checked as `ballast train` checks it.

    Raises:
        ValueError: no override has several values, or a combination can't run.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ValueError(f"--multirun: {str(error).splitlines()[0]}") from error
    axes = [
        [
            (f"{item.get_key_element()}={value}", item.key_or_group)
            for value in item.sweep_string_iterator()
        ]
        for item in parsed
        if item.is_sweep_override()
    ]
    fixed = [
        text for text, item in zip(overrides, parsed, strict=True) if not item.is_sweep_override()
    ]
    if not axes:
        raise ValueError(
            "--multirun needs an override with several values, such as algorithm=grpo,dapo or "
            "seed=range(1,4)"
        )
    runs = []
    for chosen in itertools.product(*axes):
        words = [*fixed, *(text for text, _ in chosen)]
        raw, config = compose(words, config_dir=config_dir)
        plan.check_launch(config, instantiate(raw.algorithm, _convert_="all"))
        name = "_".join(_word(text, key) for text, key in chosen)
        parent = Path(config.output_dir).absolute() / config.run_name
        words += [f"run_name={name}", f"output_dir='{parent}'"]
        runs.append(PlannedRun(folder=parent / name, overrides=tuple(words)))
    names = [run.folder for run in runs]
    if len(set(names)) < len(names):
        double = next(name.name for name in names if names.count(name) > 1)
        raise ValueError(f"--multirun: two combinations would be written to {double}; merge them")
    return runs


def _word(text: str, key: str) -> str:
    """Return a swept override as part of a folder's name: last part of the key, and the value."""
    value = text.partition("=")[2]
    last = re.split(r"[./]", key)[-1]
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", f"{last}-{value}").strip("-")


def _made(run: PlannedRun) -> list[Path]:
    """Return the newest folder that a run has written, if it came so far."""
    name = re.compile(re.escape(run.folder.name) + r"(-\d+)?")  # numbered where it was taken
    found = [
        path
        for path in run.folder.parent.glob("*/metrics.jsonl")
        if name.fullmatch(path.parent.name)
    ]
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime)[-1:]]


class RunProcesses:
    """Processes of the runs of a sweep, of which a bounded number runs at a time.

    Args:
        command: words that the overrides of a run are added to.
        parallel: processes at a time; with 1 their output goes where the command's goes, else into
            a file beside the run's folder.
    """

    def __init__(self, command: Sequence[str], parallel: int) -> None:
        self._command, self._parallel = list(command), parallel
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._stopping: int | None = None

    def run(self, runs: Sequence[PlannedRun]) -> list[int | None]:
        """Run all, in order; return their exit codes, None for those that were never begun.

        A signal that asks to stop is passed on, and no further run begins.
        """
        before = {number: signal.signal(number, self._stop) for number in SIGNALS}
        codes: list[int | None] = [None] * len(runs)
        try:
            for number, run in enumerate(runs):
                self._reap(codes, most=self._parallel - 1)
                if self._stopping is not None:
                    break
                print(f"run {number + 1} of {len(runs)}: {run.folder.name}", flush=True)
                self._running[number] = self._start(run)
            self._reap(codes, most=0)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._stopping is not None:
            return [EXIT_CODE if code is None else code for code in codes]
        return codes

    def _start(self, run: PlannedRun) -> subprocess.Popen[bytes]:
        if self._parallel == 1:
            return subprocess.Popen([*self._command, *run.overrides], start_new_session=True)
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        path = run.folder.parent / f"{run.folder.name}.{LOG}"
        with path.open("wb") as log:
            return subprocess.Popen(
                [*self._command, *run.overrides],
                start_new_session=True,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _reap(self, codes: list[int | None], *, most: int) -> None:
        """Wait until at most `most` processes run, and keep the exit codes of those that ended."""
        while len(self._running) > most:
            for number, process in list(self._running.items()):
                if (code := process.poll()) is not None:
                    codes[number] = code if code >= 0 else 128 - code
                    del self._running[number]
                    print(f"run {number + 1} ended with exit code {codes[number]}", flush=True)
            if len(self._running) > most:
                time.sleep(POLL_S)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._stopping = number
        for process in self._running.values():
            process.send_signal(number)
