"""Show a run of another process: `ballast watch RUN`, on the display that the run itself has.

Reads the run's folder, again and again, until the run has ended: `metrics.jsonl` line by line, and
`activity.json`. Writes nothing and starts nothing; the run does not notice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from orchestrator.report.run_record import check_folder, state_of
from orchestrator.telemetry.alerts.rules import Alerts
from orchestrator.telemetry.display.activity import read_moment
from orchestrator.telemetry.display.progress import Progress

INTERVAL_S = 1.0


class MetricsTail:
    """Reader of the lines of a run's `metrics.jsonl` that are new since the last call.

    Args:
        path: of the file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def lines(self) -> Iterator[Mapping[str, Any]]:
        """Iterate over the new whole lines; a file that a resume cut is read on from its end."""
        size = self._path.stat().st_size if self._path.exists() else 0
        self._read = min(self._read, size)
        if size == self._read:
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read(size - self._read).rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for text in whole.splitlines():
            try:
                yield json.loads(text)
            except ValueError:  # damaged; `ballast report` names it
                continue


def watch(
    run_dir: Path,
    *,
    make_progress: Callable[[int], Progress] = Progress,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Show a run until it ends, and return how: "finished", "failed" or "ended early".

    Args:
        run_dir: the run's folder.
        make_progress: makes the display, from the number of the run's steps.
        sleep: waits between two looks at the folder.

    Raises:
        ValueError: the folder is not a run's.
    """
    check_folder(run_dir)
    total = _total_steps(run_dir)
    tail, alerts, last = MetricsTail(run_dir / "metrics.jsonl"), Alerts(), 0
    with make_progress(total or 0) as progress:
        while True:
            state = state_of(run_dir, last, total)  # before the lines, so that none is missed
            for line in tail.lines():
                last = int(line.get("step", last))
                _show(progress, last, line, alerts)
            if state != "running":
                break
            if (moment := read_moment(run_dir)) is not None:
                progress.show_moment(moment)
            sleep(INTERVAL_S)
    state = state_of(run_dir, last, total)
    print(f"{run_dir.name}: {state} after step {last}" + (f" of {total}" if total else ""))
    return state


def _show(progress: Progress, step: int, line: Mapping[str, Any], alerts: Alerts) -> None:
    metrics = {name: value for name, value in line.items() if name != "step"}
    if "time/step_s" in metrics:
        progress.step(step, metrics)
        for alert in alerts.step(metrics):
            progress.print_line(f"alert at step {step}: {alert}")
    elif "eval/mean" in metrics:
        shown = "  ".join(
            f"{name.removeprefix('eval/')} {value:.3f}" for name, value in metrics.items()
        )
        progress.print_line(f"held-out at step {step}: {shown}")


def _total_steps(run_dir: Path) -> int | None:
    path = run_dir / "config.yaml"
    found = OmegaConf.select(OmegaConf.load(path), "trainer.total_steps") if path.exists() else None
    return None if found is None else int(found)
