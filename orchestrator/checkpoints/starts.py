"""Keep the starts of a run in `starts.jsonl`: one line for every driver that began or resumed it.

The driver writes a line when it opens the run's folder. The report marks the steps after which a
run was resumed; nothing else reads the file.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

FILE = "starts.jsonl"


def write_start(run_dir: Path, after_step: int) -> None:
    """Append a start after `after_step`; 0 is the begin of the run."""
    time = datetime.now().astimezone().isoformat(timespec="seconds")
    with (run_dir / FILE).open("a") as file:
        file.write(json.dumps({"time": time, "after_step": after_step}) + "\n")


def read_starts(run_dir: Path) -> list[int]:
    """Return the steps after which the run was resumed, in order; a damaged line is left out."""
    path = run_dir / FILE
    found = []
    for line in path.read_text().splitlines()[1:] if path.exists() else []:
        try:
            found.append(int(json.loads(line)["after_step"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
