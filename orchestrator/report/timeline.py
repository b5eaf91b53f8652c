"""Read some steps of a run's trace: what every worker did, for the timeline of a report.

The file (`orchestrator/telemetry/trace_file.py`) is read line by line, so that its size costs time
and no memory; one that is too large is left to Perfetto. Nothing is summed here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.telemetry.trace_file import FILE_NAME, MEMBERS, ROLES

SHOWN_STEPS = 16
MAX_SPANS = 1_200  # of a step; the shortest are left out
MAX_TRACE_BYTES = 200 * 2**20


def read_timeline(run_dir: Path) -> dict[str, Any]:
    """Return the spans of some steps: the first, the last, the slowest, and evenly spread ones.

    Returns:
        `steps`: each with `step`, `seconds` and `tracks`, of which each has `name` and `spans` as
        [activity, begin, length] in seconds from the step's begin; `note`: a sentence about what is
        missing, or an empty text.
    """
    path = run_dir / FILE_NAME
    if not path.exists():
        return {"steps": [], "note": "this run wrote no trace (tracking.trace=false)"}
    if path.stat().st_size > MAX_TRACE_BYTES:
        return {"steps": [], "note": f"{FILE_NAME} is large; open it in Perfetto (ui.perfetto.dev)"}
    heads = _heads(path)
    chosen = _spread(heads)
    found = []
    with path.open("rb") as file:
        for number in chosen:
            file.seek(heads[number][0])
            found.append(_step(number, file.readline(), _section(file)))
    more = len(heads) - len(chosen)
    note = f"{more} more steps are in {FILE_NAME}, for Perfetto (ui.perfetto.dev)" if more else ""
    return {"steps": found, "note": note}


def _heads(path: Path) -> dict[int, tuple[int, int]]:
    """Return step -> (place of its first line, length in microseconds)."""
    heads = {}
    place = 0
    with path.open("rb") as file:
        for line in file:
            if _is_head(line) and (event := _event(line)):
                heads[int(event["args"]["step"])] = place, int(event["dur"])
            place += len(line)
    return heads


def _is_head(line: bytes) -> bool:
    return b'"name":"step ' in line


def _event(line: bytes) -> dict[str, Any]:
    """Return the event of a line; empty for brackets and for a half-written line."""
    try:
        found = json.loads(line.strip().lstrip(b","))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _section(file: Any) -> list[dict[str, Any]]:
    """Read the events up to the next step."""
    events = []
    for line in file:
        if _is_head(line):
            break
        if (event := _event(line)).get("ph") == "X":
            events.append(event)
    return events


def _spread(heads: dict[int, tuple[int, int]]) -> list[int]:
    numbers = sorted(heads)
    if len(numbers) <= SHOWN_STEPS:
        return numbers
    places = np.linspace(0, len(numbers) - 1, SHOWN_STEPS - 1).round().astype(int)
    slowest = max(numbers, key=lambda number: heads[number][1])
    return sorted({slowest, *(numbers[place] for place in places)})


def _step(number: int, head: bytes, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    begin = _event(head)
    origin, length = int(begin["ts"]), int(begin["dur"])
    tracks: dict[tuple[int, int], list[list[Any]]] = {}
    inside = [e for e in events if e["ts"] < origin + length and e["ts"] + e["dur"] > origin]
    inside.sort(key=lambda event: -int(event["dur"]))
    for event in inside[:MAX_SPANS]:
        first = max(event["ts"] - origin, 0)
        last = min(event["ts"] + event["dur"] - origin, length)
        span = [event["name"], round(first / 1e6, 4), round((last - first) / 1e6, 4)]
        tracks.setdefault((int(event["pid"]), int(event["tid"])), []).append(span)
    return {
        "step": number,
        "seconds": round(length / 1e6, 4),
        "tracks": [
            {"name": _track(pid, tid), "spans": sorted(spans, key=lambda span: span[1])}
            for (pid, tid), spans in sorted(tracks.items())
        ],
    }


def _track(pid: int, tid: int) -> str:
    role = ROLES[pid - 1] if 0 < pid <= len(ROLES) else f"process {pid}"
    member = MEMBERS.get(role, "rank")
    return role if role == "driver" else f"{role} {member} {tid}"
