"""Write the report at the end of a run, however the run ends: finished, stopped or failed.

Runs in the driver, after every other process was stopped. A report is an extra: what goes wrong
with it is one line on the terminal and never the end of the run, and its budgets are small enough
that a long run does not wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from orchestrator.report.page import FILE
from orchestrator.report.writing import write_report

MAX_TOKENS = 4_000_000  # read at the end of a run; `ballast report` reads more


class ReportAtEnd:
    """Context manager that writes `report.html` into a run's folder when the run ends.

    Attributes:
        path: of the report; None before it is written, and where it could not be.

    Args:
        run_dir: of the run.
        wanted: False writes none.
        stops: errors that are no failure: the run was asked to stop.
        print_line: takes the warning, if there is one.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        wanted: bool,
        stops: tuple[type[Exception], ...],
        print_line: Callable[[str], None],
    ) -> None:
        self._run_dir, self._wanted = run_dir, wanted
        self._stops, self._print_line = stops, print_line
        self.path: Path | None = None

    def __enter__(self) -> ReportAtEnd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if not self._wanted or not (error is None or isinstance(error, Exception)):
            return
        stopped = isinstance(error, self._stops)
        state = "finished" if error is None else "stopped" if stopped else "failed"
        began = time.monotonic()
        try:
            path = self._run_dir / FILE
            write_report([self._run_dir], path, state=state, max_tokens=MAX_TOKENS)
            self.path = path
        except Exception as fault:
            lines = str(fault).splitlines() or [""]
            self._print_line(
                f"no report was written after {time.monotonic() - began:.1f} s "
                f"({type(fault).__name__}: {lines[0]}); ballast report {self._run_dir} tries again"
            )
