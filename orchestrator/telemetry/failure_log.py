"""Keep the traceback of what ended a run in a file, so that the user is shown one line.

The driver enters a `FailureLog` beside its other outputs; `ballast` prints the line. Nothing is
caught, judged or repeated here.
"""

from __future__ import annotations

import tempfile
import traceback
from datetime import datetime
from pathlib import Path
from types import TracebackType

FILE = "failure.log"
EXPECTED = (ValueError, RuntimeError)  # their messages say what is wrong and what to do


class FailureLog:
    """Context manager that appends the traceback of what ends a run to a file in its folder.

    Args:
        run_dir: of the run.
        ignore: errors that are no failure.
    """

    def __init__(self, run_dir: Path, *, ignore: tuple[type[Exception], ...] = ()) -> None:
        self._path, self._ignore = run_dir / FILE, ignore

    def __enter__(self) -> FailureLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, self._ignore):
            _keep(error, self._path)


def describe(error: Exception) -> str:
    """Return the line that a user is shown: the error, what was saved, where its traceback is.

    The traceback of an error that nobody expected goes to a temporary file where no run kept it.
    """
    if not isinstance(error, EXPECTED) and not getattr(error, "__notes__", []):
        with tempfile.NamedTemporaryFile(prefix="ballast-", suffix=".log", delete=False) as file:
            _keep(error, Path(file.name))
    return with_notes(_name_and_message(error), error)


def with_notes(message: str, error: Exception) -> str:
    """Return a message about an error with what was noted on it: what was saved, for example."""
    return "; ".join([message, *getattr(error, "__notes__", [])])


def _name_and_message(error: Exception) -> str:
    if isinstance(error, ValueError):
        return str(error)
    name = type(error).__name__
    if isinstance(error, EXPECTED):
        return f"{name}: {error}"
    from workers.failures import one_line  # imports Ray, which a wrong override need not wait for

    return f"{name}: {one_line(error)}"


def _keep(error: Exception, path: Path) -> None:
    try:
        with path.open("a") as file:
            file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')}\n")
            file.writelines(traceback.format_exception(error))
    except OSError as fault:  # a full disk may be what ended the run
        error.add_note(f"its traceback could not be written: {fault}")
    else:
        error.add_note(f"traceback: {path}")
