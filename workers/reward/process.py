"""Control one scoring process from its parent: start, send a batch, receive result lines, kill.

The reward worker's pool runs this module. Nothing is decided here about failures: an error says
that the time is over or that the process died, and the pool decides. Every wait has a limit. One
thread uses an object; only `close` may be called from another.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workers.reward import child
from workers.reward.base import RewardResult, Siblings

START_LIMIT_S = 120.0  # imports of a scorer on a busy machine
READ_BYTES = 1 << 16


class SampleTimeoutError(Exception):
    """No result within the limit of one sample."""


class ProcessDiedError(Exception):
    """A scoring process that ended."""


class ScoringProcess:
    """A child process that scores with one scorer, restarted when needed."""

    def __init__(
        self,
        scorer: bytes,
        *,
        timeout_s: float,
        start_s: float = START_LIMIT_S,
        folder: str | None = None,
    ) -> None:
        """Remember the pickled scorer; `launch` starts the process."""
        self._scorer = scorer
        self._timeout_s, self._start_s, self._folder = timeout_s, start_s, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._buffer = b""
        self._lock = threading.Lock()
        self._forbidden = False

    def launch(self) -> None:
        """Start the process without waiting for it; do nothing if one is there."""
        with self._lock:
            if self._forbidden or self._process is not None:
                return
            # -P: this script's folder stays off sys.path, where its math.py would hide Python's.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(child.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                env={"OMP_NUM_THREADS": "1", **os.environ},
                bufsize=0,
            )
        self._ready = False
        self._buffer = b""

    def ensure_ready(self) -> None:
        """Wait until the process can score; start it if it is not running.

        Raises:
            RuntimeError: the process cannot start: the scorer does not import there, or takes too
                long.
        """
        self.launch()
        if self._ready:
            return
        try:
            self._send(
                {
                    "parent": os.getpid(),
                    "sys_path": [os.path.abspath(entry) for entry in sys.path],
                    "scorer": self._scorer,
                    "timeout_s": self._timeout_s,
                    "folder": self._folder,
                }
            )
            word, detail = self._receive(self._start_s)
        except SampleTimeoutError:
            self.kill()
            raise RuntimeError(
                f"the scoring process was not ready after {self._start_s:.0f} s: the scorer's "
                "imports or its prepare() take too long; raise reward.start_s"
            ) from None
        except ProcessDiedError:
            self.kill()
            raise RuntimeError(
                "the scoring process ended while it started; its own message is on stderr"
            ) from None
        if word != "ready":
            self.kill()
            raise RuntimeError(f"the scorer cannot be built in a scoring process: {detail}")
        self._ready = True

    def send(self, groups: Sequence[Siblings]) -> None:
        """Send groups to the process; the results of each follow, in order."""
        self._send(
            [
                [(s.prompt, s.response, s.ground_truth, dict(s.columns), s.messages) for s in group]
                for group in groups
            ]
        )

    def receive(self) -> list[RewardResult]:
        """Wait for the results of the next group.

        Raises:
            SampleTimeoutError: none came within the limit of one call of the scorer.
            ProcessDiedError: the process is gone.
        """
        return [
            RewardResult(outcome=outcome, reward=reward, parts=parts, notes=notes, seconds=seconds)
            for outcome, reward, parts, notes, seconds in self._receive(self._timeout_s)
        ]

    def kill(self) -> None:
        """End the process and all processes that it started."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return
            _end_group(process)
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()

    def close(self) -> None:
        """End the process and refuse every later start."""
        self._forbidden = True
        with self._lock:
            if self._process is not None:
                # Its pipes stay open: the serving thread reads the end of file and closes them.
                _end_group(self._process)

    def _send(self, message: Any) -> None:
        process = self._process
        if process is None or process.stdin is None:
            raise ProcessDiedError
        body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        view = memoryview(child.HEADER.pack(len(body)) + body)
        try:
            while view:
                view = view[process.stdin.write(view) or 0 :]
        except (BrokenPipeError, ValueError):
            raise ProcessDiedError from None

    def _receive(self, timeout_s: float) -> list[Any]:
        process = self._process
        if process is None or process.stdout is None:
            raise ProcessDiedError
        descriptor = process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left_s = max(0.0, deadline - time.monotonic())
            # Polled once more when the time is over: this thread may have been the slow one.
            if not poll.poll(1000 * left_s):
                raise SampleTimeoutError
            data = os.read(descriptor, READ_BYTES)
            if not data:
                raise ProcessDiedError
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: list[Any] = json.loads(line)
        return message


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its descendants; only before `wait`, while its id is still its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
