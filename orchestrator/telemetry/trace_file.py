"""Write `trace.json`: the spans of every worker, for Perfetto (ui.perfetto.dev) or chrome://tracing.

The driver writes Chrome's trace-event format as an array: one process per role, one thread per
worker, counters. The file is complete JSON after every step, because Perfetto refuses an array
without its end: a step is written over the closing bracket, which follows the step in the same
write. One event per line; a step's lines begin with the slice of the step itself, at which a
resumed run cuts the file. A file that grows beyond its limit loses its oldest steps, down to half
of the limit. Times are microseconds of the wall clock. Nothing is summed here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workers.spans import Timeline

FILE_NAME = "trace.json"
ROLES = ("driver", "rollout", "reward", "learner", "reference", "critic")  # pid - 1, and the order
MEMBERS = {"rollout": "engine", "reward": "worker", "driver": "driver"}  # others have ranks
END = b"]\n"
LIMIT_BYTES = 256 << 20  # what a browser opens in seconds


class TraceFile:
    """Trace of a run, to which steps are appended.

    Args:
        run_dir: the run's folder.
        limit_bytes: the file's size at which its oldest steps are dropped; the newest step remains,
            however large.
    """

    def __init__(self, run_dir: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._path, self._limit_bytes = run_dir / FILE_NAME, limit_bytes
        if not self._path.exists():
            self._path.write_bytes(b"[\n" + END)
        self._open()
        self._named: set[tuple[str, int]] = set()

    def write_step(
        self,
        step: int,
        window: tuple[float, float],
        timelines: Sequence[Timeline],
        counters: Mapping[str, float],
    ) -> None:
        """Append one step.

        Args:
            step: its number.
            window: its begin and end, in seconds.
            timelines: of all workers.
            counters: name -> number at the step's end.
        """
        begin_s, end_s = window
        head = _slice("driver", 0, f"step {step}", begin_s, end_s) | {"args": {"step": step}}
        numbers = (_counter("driver", name, end_s, value) for name, value in counters.items())
        self._append([head, *self._events(timelines), *numbers])
        if self._end > self._limit_bytes:
            self._drop_oldest()

    def finish(self, timelines: Sequence[Timeline]) -> None:
        """Append the spans after the last step, and close the file."""
        self._append(list(self._events(timelines)))
        self._file.close()

    def _open(self) -> None:
        self._file = self._path.open("r+b")
        self._end = self._path.stat().st_size - len(END)
        self._empty = self._end <= len(b"[\n")

    def _drop_oldest(self) -> None:
        """Keep the newest steps, half of the limit or one, and the names of all workers."""
        self._file.close()
        starts, names, offset = [], dict[bytes, None](), 0
        with self._path.open("rb") as file:
            for line in file:
                if b'"name":"step ' in line:
                    starts.append(offset)
                elif b'"ph":"M"' in line:
                    names[line.lstrip(b", ")] = None
                offset += len(line)
        wanted = self._end - self._limit_bytes // 2
        first = next((start for start in starts if start >= wanted), starts[-1])
        shorter = self._path.with_suffix(".partial")
        with self._path.open("rb") as file, shorter.open("wb") as copy:
            copy.write(b"[\n " + b",".join(names))
            file.seek(first if names else first + 1)  # the comma, or none
            shutil.copyfileobj(file, copy)
        os.replace(shorter, self._path)
        self._open()

    def _append(self, events: Sequence[Mapping[str, Any]]) -> None:
        lines = [json.dumps(event, separators=(",", ":")) for event in events]
        text = "".join(f",{line}\n" for line in lines).encode()
        if self._empty and text:
            text, self._empty = b" " + text[1:], False
        self._file.seek(self._end)
        self._file.write(text + END)
        self._file.flush()
        self._end += len(text)

    def _events(self, timelines: Sequence[Timeline]) -> Iterator[dict[str, Any]]:
        for timeline in timelines:
            role, index = timeline.role, timeline.index
            if (role, index) not in self._named:
                self._named.add((role, index))
                yield from _names(role, index)
            for span in timeline.spans:
                yield _slice(role, index, span.activity, span.begin_s, span.end_s)
            for at_s, level in timeline.levels:
                yield _counter(role, f"samples with engine {index}", at_s, level)


def _names(role: str, index: int) -> Iterator[dict[str, Any]]:
    """Name a worker and its role for Perfetto."""
    ids = {"ph": "M", "pid": _pid(role), "tid": index}
    yield {**ids, "name": "process_name", "args": {"name": role}}
    yield {**ids, "name": "process_sort_index", "args": {"sort_index": _pid(role)}}
    name = f"{MEMBERS.get(role, 'rank')} {index}"
    yield {**ids, "name": "thread_name", "args": {"name": name}}


def truncate_trace(run_dir: Path, last_step: int) -> None:
    """Drop the steps after `last_step`, which a resumed run does again, and a half-written line."""
    path = run_dir / FILE_NAME
    if not path.exists():
        return
    kept = 0
    with path.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n") or line == END or _step(line) > last_step:
                break
            kept += len(line)
        file.truncate(kept)
        file.seek(kept)
        file.write(END if kept else b"[\n" + END)


def _step(line: bytes) -> int:
    """Return the number of the step that begins with this line; 0 for a line within a step."""
    if b'"name":"step ' not in line:
        return 0
    return int(json.loads(line.lstrip(b", "))["args"]["step"])


def _slice(role: str, index: int, name: str, begin_s: float, end_s: float) -> dict[str, Any]:
    # Rounded ends, not durations, or neighbours would overlap by a microsecond.
    begin, end = round(begin_s * 1e6), round(end_s * 1e6)
    times = {"ts": begin, "dur": end - begin}
    return {"name": name, "ph": "X", "pid": _pid(role), "tid": index, **times}


def _counter(role: str, name: str, at_s: float, value: float) -> dict[str, Any]:
    at = {"ph": "C", "pid": _pid(role), "tid": 0, "ts": round(at_s * 1e6)}
    return {"name": name, **at, "args": {"value": value}}


def _pid(role: str) -> int:
    return ROLES.index(role) + 1
