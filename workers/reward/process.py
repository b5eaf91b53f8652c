"""Control one killable process from its parent: start, send a batch, receive result lines, kill.

The pools of the reward worker (scoring) and of the rollout worker (tools) run this module. Nothing
is decided here about failures: an error says that the time is over or that the process died, and
the pool decides. Every wait has a limit. One thread uses an object; only `close` may be called from
another.
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
    """A killable process that ended."""


class KillableProcess:
    """A child process in which one server answers items, restarted when needed.

    Args:
        server: pickled `child.Server`; `launch` starts the process that runs it.
        timeout_s: wall-clock limit of one item.
        start_s: limit of the start.

    Attributes:
        described: value that the server's `prepare` returned, once the process is ready.
    """

    kind = "child"  # names the process in errors
    served = "its server"
    remedy = ""
    pass_fds: Sequence[int] = ()  # descriptors that the process inherits, beside the three

    def __init__(self, server: bytes, *, timeout_s: float, start_s: float = START_LIMIT_S) -> None:
        self._server = server
        self._timeout_s, self._start_s = timeout_s, start_s
        self.described: Any = None
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
                pass_fds=self.pass_fds,
            )
        self._ready = False
        self._buffer = b""

    def ensure_ready(self) -> None:
        """Wait until the process can score; start it if it is not running.

        Raises:
            RuntimeError: the process cannot start: the server's parts do not import there, or take
                too long.
        """
        self.launch()
        if self._ready:
            return
        try:
            self._send(
                {
                    "parent": os.getpid(),
                    "sys_path": [os.path.abspath(entry) for entry in sys.path],
                    "server": self._server,
                    "timeout_s": self._timeout_s,
                }
            )
            word, detail = self._receive(self._start_s)
        except SampleTimeoutError:
            self.kill()
            raise RuntimeError(
                f"the {self.kind} process was not ready after {self._start_s:.0f} s: imports or "
                f"the prepare() of {self.served} take too long{self.remedy}"
            ) from None
        except ProcessDiedError:
            self.kill()
            raise RuntimeError(
                f"the {self.kind} process ended while it started; its own message is on stderr"
            ) from None
        if word != "ready":
            self.kill()
            raise RuntimeError(f"{self.served} cannot be built in a {self.kind} process: {detail}")
        self.described = detail
        self._ready = True

    def send_items(self, items: Sequence[Any]) -> None:
        """Send items to the process; the answer to each follows, in order."""
        self._send(list(items))

    def receive_answer(self) -> list[Any]:
        """Wait for the answer to the next item.

        Raises:
            SampleTimeoutError: none came within the limit of one item.
            ProcessDiedError: the process is gone.
        """
        return self._receive(self._timeout_s)

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


class ScoringProcess(KillableProcess):
    """A killable process that scores with one scorer."""

    kind = "scoring"
    served = "the scorer"
    remedy = "; raise reward.start_s"

    def send(self, groups: Sequence[Siblings]) -> None:
        """Send groups to the process; the results of each follow, in order."""
        self.send_items(
            [
                [
                    (s.prompt, s.response, s.ground_truth, dict(s.columns), s.messages, s.images)
                    for s in group
                ]
                for group in groups
            ]
        )

    def receive(self) -> list[RewardResult]:
        """Wait for the results of the next group; errors as in `receive_answer`."""
        return [
            RewardResult(outcome=outcome, reward=reward, parts=parts, notes=notes, seconds=seconds)
            for outcome, reward, parts, notes, seconds in self.receive_answer()
        ]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its descendants; only before `wait`, while its id is still its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
