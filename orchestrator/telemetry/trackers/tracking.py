"""Write a run's metrics: `metrics.jsonl` always, and trackers by name, several at once.

One flat dictionary per step goes in, from the driver. `metrics.jsonl` is written line by line and
flushed, so a killed run keeps every finished step. A tracker has a thread and a queue of its own: a
tracker that hangs or fails costs one warning and what it should have got, and never slows or ends a
run. No metric is computed here.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.schema import TrackingConfig
from orchestrator.telemetry.trackers.sinks import (
    BOARD,
    Row,
    Sink,
    TrackedRun,
    check_packages,
    open_tracker,
)

MAX_WAITING = 1000  # calls for a tracker that is slow
CLOSE_S = 60.0  # for all trackers together to write what waits, at the end of a run
MARKS = "trackers.json"  # in the run's folder

Open = Callable[
    [str | None], Sink
]  # the run's id at the tracker, if it has one -> the open tracker


class Marks:
    """File that remembers the run's id at each tracker, and the last step that a tracker got.

    Example: {"wandb": {"id": "9f86d081", "step": 6}}
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        try:
            self._marks: dict[str, dict[str, Any]] = json.loads(path.read_text())
        except (OSError, ValueError):  # none yet, or half a file
            self._marks = {}

    def of(self, name: str) -> tuple[str | None, int]:
        """Return the run's id at a tracker, or None, and the tracker's last step, or -1."""
        mark = self._marks.get(name, {})
        return mark.get("id"), int(mark.get("step", -1))

    def set(self, name: str, run_id: str, step: int) -> None:
        """Remember id and step of one tracker."""
        with self._lock:
            self._marks[name] = {"id": run_id, "step": step}
            draft = self._path.with_suffix(".partial")
            draft.write_text(json.dumps(self._marks))
            draft.replace(self._path)


class TrackerQueue:
    """Queue and thread of one tracker.

    Of a tracker that cannot forget, what a resumed run computes again is left out: such a tracker
    keeps one history, with the numbers of the first time.

    Args:
        name: of the tracker.
        open_sink: opens it; called in the thread.
        marks: of the run.
        print_line: takes the warning, if there is one.
        forgets: True where the tracker's history was cut at the checkpoint.
    """

    def __init__(
        self,
        name: str,
        open_sink: Open,
        marks: Marks,
        *,
        print_line: Callable[[str], None],
        forgets: bool,
    ) -> None:
        self.name, self._open, self._marks = name, open_sink, marks
        self._print_line, self._forgets, self._warned = print_line, forgets, False
        self._calls: queue.Queue[tuple[int | None, Callable[[Sink], None]] | None]
        self._calls = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._serve, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, call: Callable[[Sink], None], step: int | None = None) -> None:
        """Queue a call; drop it where too many wait."""
        try:
            self._calls.put_nowait((step, call))
        except queue.Full:
            self._warn(f"is behind by {MAX_WAITING} calls; further ones are dropped")

    def end(self) -> None:
        """Let the thread end after what waits now."""
        try:
            self._calls.put_nowait(None)
        except queue.Full:
            self._calls.get_nowait()
            self._calls.put_nowait(None)

    def join(self, limit_s: float) -> None:
        """Wait for the thread's end; warn where it does not come."""
        self._thread.join(limit_s)
        if self._thread.is_alive():
            self._warn("did not finish in time; what it had not written is lost")

    def _serve(self) -> None:
        known, seen = self._marks.of(self.name)
        last = seen
        try:
            sink = self._open(known)
            self._marks.set(self.name, sink.id, last)
        # Whatever a tracker raises, SystemExit included, the run goes on.
        except BaseException as error:
            self._warn(f"can't be opened ({_first_line(error)})")
            return
        while (item := self._calls.get()) is not None:
            step, call = item
            if step is not None and step <= seen and not self._forgets:
                continue
            try:
                call(sink)
                if step is not None and step > last:
                    last = step
                    self._marks.set(self.name, sink.id, last)
            except BaseException as error:
                self._warn(f"failed ({_first_line(error)})")
        try:
            sink.close()
        except BaseException as error:
            self._warn(f"failed at its end ({_first_line(error)})")

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            self._print_line(f"tracker {self.name} {what}; the run goes on, see metrics.jsonl")


class Tracker:
    """Tracker of one run's metrics, with all of its sinks.

    Args:
        run_dir: the run's folder.
        config: names the trackers.
        run_name: of the run, for the trackers.
        settings: the run's configuration, plain values only.
        print_line: takes warnings.

    Raises:
        ValueError: the package of a tracker is missing.
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrackingConfig,
        *,
        run_name: str,
        settings: Mapping[str, Any] | None = None,
        print_line: Callable[[str], None] = print,
    ) -> None:
        check_packages(config.trackers)
        self._file = (run_dir / "metrics.jsonl").open("a", buffering=1)
        run = TrackedRun(
            run_dir=run_dir, project=config.project, name=run_name, settings=settings or {}
        )
        marks = Marks(run_dir / MARKS)
        self._queues = [
            TrackerQueue(
                name,
                lambda known, name=name: open_tracker(name, run, known),  # type: ignore[misc]
                marks,
                print_line=print_line,
                forgets=name == BOARD,
            )
            for name in config.trackers
        ]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step to the file, and hand them to every tracker."""
        self._file.write(json.dumps({"step": step, **metrics}, sort_keys=True) + "\n")
        handed = dict(metrics)
        for waiting in self._queues:
            waiting.put(lambda sink: sink.log(step, handed), step)

    def table(self, step: int, rows: Sequence[Row]) -> None:
        """Hand samples to every tracker, a row each."""
        for waiting in self._queues if rows else ():
            waiting.put(lambda sink: sink.table(step, rows), step)

    def keep(self, path: Path) -> None:
        """Hand a file to every tracker."""
        for waiting in self._queues:
            waiting.put(lambda sink: sink.keep(path))

    def close(self, limit_s: float = CLOSE_S) -> None:
        """Close the file, and wait for the trackers, no longer than `limit_s`."""
        self._file.close()
        for waiting in self._queues:
            waiting.end()
        for waiting in self._queues:
            waiting.join(limit_s / len(self._queues))


def finished_steps(run_dir: Path) -> list[dict[str, Any]]:
    """Return the metrics of the steps in `metrics.jsonl`, which need not exist; no evaluations."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [step for line in lines if "time/step_s" in (step := json.loads(line))]


def truncate_metrics(run_dir: Path, last_step: int) -> None:
    """Drop lines after `last_step`, which a resumed run computes again."""
    path = run_dir / "metrics.jsonl"
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _step(line) <= last_step]
        path.write_text("".join(kept))


def _step(line: str) -> int:
    return int(json.loads(line)["step"])


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
