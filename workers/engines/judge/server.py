"""Keep the server of a judge's engine running: start it, wait for it, start it again, end it.

Runs in a judge worker, in a thread. The port stays the same from start to start, so that those who
ask need to know one address. Asks the server nothing but its health.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from workers.engines.judge import guard
from workers.engines.vllm.leftovers import SOCKETS_VARIABLE, EngineFolder

PROBE_S = 0.5  # between two looks at the server's process
HEALTH_S = 5.0  # between two questions for its health
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # before a server that ended is started again
PORT_S = 10.0  # in which a port that a dead server held is free again
TAIL_BYTES = 2000  # of a log, in an error


def free_port(host: str, candidates: Sequence[int]) -> int:
    """Return the first port that is free, or becomes so in a few seconds.

    Raises:
        RuntimeError: all are taken.
    """
    for port in candidates:
        deadline = time.monotonic() + PORT_S
        while True:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                    return port
                except OSError:
                    if time.monotonic() > deadline:
                        break
            time.sleep(PROBE_S)
    raise RuntimeError(f"no port of {list(candidates)} is free on {host}")


class KeptServer:
    """Server that is started again whenever it ends, until it is closed.

    Args:
        command: of the server.
        env: of the server.
        host: address where it listens.
        port: there.
        log: file that gets what it prints.
        silence_s: time without an answer after which a server that has answered is ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        host: str,
        port: int,
        log: Path,
        silence_s: float,
    ) -> None:
        self._command, self._env = list(command), dict(env)
        self._host, self._port, self._log, self._silence_s = host, port, log, silence_s
        self._guard: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closing, self._answered, self._failed = (threading.Event() for _ in range(3))
        self.num_starts = 0
        self._thread = threading.Thread(target=self._keep, name="judge-server", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        """Return once the server answers.

        Raises:
            RuntimeError: it ended before it answered for the first time, or the time is over; with
                the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while not self._answered.wait(PROBE_S):
            late = time.monotonic() > deadline
            if late or self._failed.is_set():
                why = f"did not answer in {timeout_s:g} s" if late else "ended while it started"
                raise RuntimeError(f"a judge's server {why}; {self._log} ends with: {self._tail()}")

    def close(self) -> None:
        """End the server with all its processes, and start it no more; safe to call twice."""
        self._closing.set()
        self._end()
        self._thread.join()

    def _keep(self) -> None:
        """Run the server again and again; the body of the thread."""
        pause_s = SHORTEST_PAUSE_S
        try:
            while not self._closing.is_set():
                answered = self._run_once()
                if not self._answered.is_set():
                    self._failed.set()
                pause_s = SHORTEST_PAUSE_S if answered else min(2 * pause_s, LONGEST_PAUSE_S)
                self._closing.wait(pause_s)
        finally:
            self._failed.set()

    def _run_once(self) -> bool:
        """Start the server and return when it is gone; True if it ever answered."""
        folder = EngineFolder()  # of what vLLM leaves behind when it is killed
        try:
            self._launch({**self._env, SOCKETS_VARIABLE: str(folder.path)})
            return self._attend(folder)
        finally:
            self._end()
            folder.remove()

    def _launch(self, env: Mapping[str, str]) -> None:
        with self._lock, self._log.open("ab") as log:
            if self._closing.is_set():
                return
            self.num_starts += 1
            self._guard = subprocess.Popen(
                [sys.executable, "-P", guard.__file__, str(os.getpid()), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(env),
                start_new_session=True,
            )

    def _attend(self, folder: EngineFolder) -> bool:
        """Return when the server has ended or is silent for too long; True if it ever answered."""
        answered, asked_at, heard_at = False, 0.0, time.monotonic()
        while self._runs():
            now = time.monotonic()
            if now - asked_at >= (HEALTH_S if answered else PROBE_S):
                asked_at = now
                if self._is_healthy():
                    if not answered:
                        folder.list_shared_memory()
                    answered, heard_at = True, time.monotonic()
                    self._answered.set()
                elif answered and now - heard_at > self._silence_s:
                    break
            self._closing.wait(PROBE_S)
        return answered

    def _runs(self) -> bool:
        """Return True while the guard runs; a guard that has ended is left to `_end` to reap."""
        process, look = self._guard, os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return process is not None and os.waitid(os.P_PID, process.pid, look) is None
        except ChildProcessError:
            return False

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=HEALTH_S)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    def _end(self) -> None:
        """End the server's process group; only before its leader is waited for."""
        with self._lock:
            process, self._guard = self._guard, None
            if process is None:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _tail(self) -> str:
        try:
            text = self._log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
        except OSError as error:
            return str(error)
        return text.strip()
