"""Keep every call of a judge in a file, and answer a call that was made before from that file.

Runs in scoring processes; those of one machine share the file, an SQLite database in the run's
folder with the machine's name. A resumed run finds the answers of the run before. Asks nobody.
"""

from __future__ import annotations

import json
import platform
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

WAIT_S = 60.0  # for other processes that write


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeCall:
    """One call of a judge.

    Example:
        JudgeCall(judge="strict", model="qwen", prompt='{"messages": [...]}',
                  answer='{"reason": "right", "score": 10}', error="", seconds=0.8)

    Attributes:
        judge: name of the judge in the configuration.
        model: name of the model at the service.
        prompt: body of the request, JSON.
        answer: text of the judge; empty where none came.
        error: the fault of the call; empty where the answer holds a verdict.
        seconds: from the request to the answer, repeats included.
    """

    judge: str
    model: str
    prompt: str
    answer: str
    error: str
    seconds: float


def key_of(body: dict[str, Any], repeat: int) -> str:
    """Return the name of a call: equal for equal prompts, models, parameters and repeats."""
    return sha256(json.dumps([body, repeat], sort_keys=True).encode()).hexdigest()


class CallFile:
    """File of calls, which is also a cache of answers.

    Args:
        folder: of the run; a file `judge_calls.MACHINE.sqlite` is opened or made there.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / f"judge_calls.{platform.node() or 'local'}.sqlite"
        try:
            self._create()
        except sqlite3.OperationalError as error:
            raise ValueError(
                f"{self.path} can't be written here ({error}): the run's folder must be on a disk "
                "that every node with reward workers can write (output_dir)"
            ) from error

    def _create(self) -> None:
        with closing(self._connect()) as connection, connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS calls (key TEXT, at REAL, judge TEXT, model TEXT, "
                "prompt TEXT, answer TEXT, error TEXT, seconds REAL)"
            )
            connection.execute("CREATE INDEX IF NOT EXISTS by_key ON calls (key)")

    def find(self, key: str) -> JudgeCall | None:
        """Return a call with a verdict that was kept under this key, or None."""
        with closing(self._connect()) as connection:
            row = connection.execute(
                "SELECT judge, model, prompt, answer, error, seconds FROM calls "
                "WHERE key = ? AND error = ''",
                (key,),
            ).fetchone()
        if row is None:
            return None
        judge, model, prompt, answer, error, seconds = row
        return JudgeCall(
            judge=judge, model=model, prompt=prompt, answer=answer, error=error, seconds=seconds
        )

    def keep(self, key: str, call: JudgeCall) -> None:
        """Write one call; on disk when the method returns."""
        row = (call.judge, call.model, call.prompt, call.answer, call.error, call.seconds)
        with closing(self._connect()) as connection, connection:
            connection.execute(
                "INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (key, time.time(), *row)
            )

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=WAIT_S)  # one each: threads may not share one
