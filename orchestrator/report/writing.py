"""Write the report of one or several runs: read the folders, build the record, fill the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.report.page import render, write
from orchestrator.report.payload import build
from orchestrator.report.rows import MAX_TOKENS
from orchestrator.report.run_record import read_run


def write_report(
    folders: Sequence[Path],
    path: Path,
    *,
    state: str | None = None,
    max_tokens: int = MAX_TOKENS,
    goal: float | None = None,
) -> None:
    """Write one HTML file about the runs in `folders`.

    Args:
        folders: of runs, in the order of the page.
        path: of the file; its folder exists.
        state: of the run, where the caller knows it.
        max_tokens: tokens to read at most, of all runs together.
        goal: a score to draw; None for the configuration's `tracking.goal`.

    Raises:
        ValueError: a folder is not that of one run.
    """
    records = [read_run(folder, state=state) for folder in folders]
    write(path, render(build(records, max_tokens=max_tokens, goal=goal)))
