"""Pass requests from `ballast scale` to a running job through small files in the run's folder.

The command writes `scale/<id>.request.json`; the driver looks for it while it waits for engines and
between steps, and writes `scale/<id>.answer.json`, anew as the work goes on. Every file appears
whole, by renaming. Together the files record all requests for more or fewer engines. Runs in the
command's process (`request_engines`) and in the driver (`ScaleRequests`). Engines are added and
removed in `membership.py`.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "scale"
POLL_EVERY_S = 0.5
ENDED = ("done", "refused")


class ScaleRefusedError(ValueError):
    """Refusal of a request: the job goes on as it was, and the message gives the reason."""


class NoAnswerError(RuntimeError):
    """Lack of an answer from the job in time."""


@dataclass(frozen=True, kw_only=True)
class ScaleRequest:
    """Request for a number of engines, which the job shall have in all."""

    id: str
    engines: int


@dataclass(frozen=True, kw_only=True)
class ScaleAnswer:
    """State of a request: `status` is working, done or refused, `message` a sentence about it."""

    status: str
    message: str


def request_engines(
    run_dir: Path, engines: int, *, timeout_s: float, print_line: Callable[[str], None]
) -> str:
    """Request a number of engines from the job that writes `run_dir`, and wait until it has them.

    Args:
        run_dir: folder of a running job.
        engines: the number of engines that the job shall have.
        timeout_s: longest wait, in seconds; the driver answers between its steps.
        print_line: takes the job's messages in the meantime.

    Returns:
        The job's last message.

    Raises:
        ScaleRefusedError: the job refuses, with the reason.
        NoAnswerError: no final answer came in time; the request is withdrawn if it was not begun.
    """
    if engines < 1:
        raise ScaleRefusedError(
            f"--engines {engines}: a run needs at least one; ballast stop ends it with a checkpoint"
        )
    if not (run_dir / "config.yaml").exists():
        raise ScaleRefusedError(f"{run_dir} is no run's folder: it has no config.yaml")
    request = ScaleRequest(id=f"{time.time_ns()}-{uuid.uuid4().hex[:6]}", engines=engines)
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    _write(folder / f"{request.id}.request.json", asdict(request))
    deadline, last = time.monotonic() + timeout_s, None
    while time.monotonic() < deadline:
        answer = _read_answer(folder, request.id)
        if answer is not None and answer.status in ENDED:
            break
        if answer is not None and answer != last:
            print_line(answer.message)
        last = answer
        time.sleep(POLL_EVERY_S)
    else:
        if last is None:
            (folder / f"{request.id}.request.json").unlink(missing_ok=True)
        raise NoAnswerError(
            f"the job of {run_dir} {'has not answered' if last is None else 'is not done'} after "
            f"{timeout_s:g} s: does it run? It answers between its steps; raise --timeout"
        )
    if answer.status == "refused":
        raise ScaleRefusedError(answer.message)
    return answer.message


class ScaleRequests:
    """Inbox of the driver for requests, entered while the job runs.

    Args:
        run_dir: folder of the job.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / FOLDER
        self._known: set[Path] = set()  # requests that were handed out or refused

    def __enter__(self) -> ScaleRequests:
        self._folder.mkdir(exist_ok=True)
        self._refuse_all("the job was not running when it was asked; ask again")
        return self

    def __exit__(self, *exc: object) -> None:
        self._refuse_all("the job has ended")

    def next(self) -> ScaleRequest | None:
        """Return the oldest request that was not returned before, or None; lists the folder."""
        for path in sorted(set(self._folder.glob("*.request.json")) - self._known):
            self._known.add(path)
            if (request := _read_request(path)) is not None:
                return request
        return None

    def answer(self, request: ScaleRequest, status: str, message: str) -> None:
        """Write the state of a request to its answer."""
        answer = ScaleAnswer(status=status, message=message)
        _write(self._folder / f"{request.id}.answer.json", asdict(answer))

    def _refuse_all(self, why: str) -> None:
        """Refuse every request without an answer, or without a final one."""
        for path in self._folder.glob("*.request.json"):
            self._known.add(path)
            request = _read_request(path)
            answer = None if request is None else _read_answer(self._folder, request.id)
            if request is not None and (answer is None or answer.status not in ENDED):
                self.answer(request, "refused", why)


def _read_request(path: Path) -> ScaleRequest | None:
    """Return a request; None for a file that is no request, or was just withdrawn."""
    try:
        fields = json.loads(path.read_text())
        return ScaleRequest(id=str(fields["id"]), engines=int(fields["engines"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_answer(folder: Path, request_id: str) -> ScaleAnswer | None:
    path = folder / f"{request_id}.answer.json"
    return ScaleAnswer(**json.loads(path.read_text())) if path.exists() else None


def _write(path: Path, fields: dict[str, object]) -> None:
    draft = path.with_suffix(".partial")
    draft.write_text(json.dumps(fields) + "\n")
    os.replace(draft, path)
