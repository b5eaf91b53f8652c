"""How `ballast scale` and a running job talk: small files in the run's folder, each written once.

The command writes `scale/<id>.request.json`; the driver looks for it while it waits for engines and
between steps, and writes `scale/<id>.answer.json`, anew as the work goes on. Every file appears
whole, by renaming. Together they are the record of who joined and left. What a request means is
`membership.py`'s.
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
ASK_EVERY_S = 0.5
ENDED = ("done", "refused")


class ScaleRefusedError(ValueError):
    """The job goes on as it was; the message says why."""


class NoAnswerError(RuntimeError):
    """The job did not answer in time."""


@dataclass(frozen=True, kw_only=True)
class ScaleRequest:
    """How many engines the job shall have."""

    id: str
    engines: int


@dataclass(frozen=True, kw_only=True)
class ScaleAnswer:
    """What became of a request: working, done or refused, and a sentence."""

    status: str
    message: str


def ask(run_dir: Path, engines: int, *, timeout_s: float, say: Callable[[str], None]) -> str:
    """Ask the job that writes `run_dir` for so many engines, and wait until it has them.

    Args:
        run_dir: of a running job.
        engines: how many it shall have.
        timeout_s: longest wait; the driver answers between its steps.
        say: takes what the job says meanwhile.

    Returns:
        What the job did.

    Raises:
        ScaleRefusedError: it can't, and says why.
        NoAnswerError: it does not say; the request is withdrawn if it was not begun.
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
            say(answer.message)
        last = answer
        time.sleep(ASK_EVERY_S)
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
    """The driver's end, entered while the job runs.

    Args:
        run_dir: of the job.
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
        """The oldest request that was not handed out yet; costs one look at the folder."""
        for path in sorted(set(self._folder.glob("*.request.json")) - self._known):
            self._known.add(path)
            if (request := _read_request(path)) is not None:
                return request
        return None

    def answer(self, request: ScaleRequest, status: str, message: str) -> None:
        """Say how far a request is."""
        answer = ScaleAnswer(status=status, message=message)
        _write(self._folder / f"{request.id}.answer.json", asdict(answer))

    def _refuse_all(self, why: str) -> None:
        """Answer what has no answer, or none that ends it."""
        for path in self._folder.glob("*.request.json"):
            self._known.add(path)
            request = _read_request(path)
            answer = None if request is None else _read_answer(self._folder, request.id)
            if request is not None and (answer is None or answer.status not in ENDED):
                self.answer(request, "refused", why)


def _read_request(path: Path) -> ScaleRequest | None:
    """A request; None for what somebody else put there, or has just withdrawn."""
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
