"""Make the processes of an environment, by forks of one small process: the nursery.

A rollout worker, which holds an engine and many threads, can't fork. The nursery is a killable
process (`workers/reward/child.py` is its script) that has imported what plays rollouts, and nothing
of the user; a fork of it takes milliseconds and shares its memory. `Nursery` is the worker's side,
`NurseryServer` the other. A process ends with its nursery, which ends with the worker. Plays
nothing.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from workers.reward.process import KillableProcess, ProcessDiedError, SampleTimeoutError
from workers.rollout.isolation.player import play_all

START, END = "start", "end"  # a process; in an answer: the number of one, and its exit code
FAILED = "failed"
ANSWER_S = 30.0  # for a fork, or for the end of a process that was killed
EXIT_S = 1.0  # for a process that closed its connection and ends by itself
PR_SET_PDEATHSIG = 1


class Nursery(KillableProcess):
    """Nursery of one environment, in the rollout worker.

    Args:
        environment: pickled.

    Raises:
        RuntimeError: it can't start.
    """

    kind = "environment"
    served = "the nursery"

    def __init__(self, environment: bytes) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            server = NurseryServer(control=theirs.fileno(), environment=environment)
            self.pass_fds = (theirs.fileno(),)
            super().__init__(pickle.dumps(server), timeout_s=ANSWER_S)
            self.ensure_ready()
        self._asking = threading.Lock()

    def start(self, connection: socket.socket) -> int:
        """Start a process that plays over a connection; return its id.

        Raises:
            OSError: the system has no room for a process.
            ProcessDiedError: the nursery is gone, with all of its processes.
        """
        with self._asking:
            with suppress(OSError):  # the nursery is gone, as the next line says
                socket.send_fds(self._control, [b"-"], [connection.fileno()])
            word, found = self._ask(START)
        if word == FAILED:
            raise OSError(found)
        return int(found)

    def end(self, process: int, *, kill: bool) -> int:
        """Wait for the end of a process; return its exit code, minus the signal that ended it.

        What the process started ends, too, as far as it stayed in its process group.

        Args:
            process: id that `start` returned.
            kill: at once; otherwise after `EXIT_S`.

        Raises:
            ProcessDiedError: the nursery is gone, with all of its processes.
        """
        with self._asking:
            return int(self._ask(END, process, kill)[1])

    def _ask(self, *item: Any) -> list[Any]:
        try:
            self.send_items([item])
            return self.receive_answer()
        except (SampleTimeoutError, ProcessDiedError):
            self.kill()
            raise ProcessDiedError from None


@dataclass(frozen=True, kw_only=True)
class NurseryServer:
    """Nursery, in its own process.

    Example: NurseryServer(control=11, environment=pickle.dumps(SingleTurn()))

    Attributes:
        control: descriptor of a socket over which connections come.
        environment: pickled; each process builds it anew.
    """

    control: int
    environment: bytes

    def prepare(self) -> None:
        """Keep the collector from the objects that all processes share."""
        gc.freeze()

    def serve(self, item: tuple[Any, ...]) -> list[Any]:
        """Start or end a process."""
        if item[0] == START:
            return self._start()
        return [END, _ended(*item[1:])]

    def _start(self) -> list[Any]:
        with socket.socket(fileno=os.dup(self.control)) as control:
            _, (descriptor,), _, _ = socket.recv_fds(control, 1, 1)
        nursery = os.getpid()
        try:
            process = os.fork()
        except OSError as error:
            os.close(descriptor)
            return [FAILED, str(error)]
        if process:
            os.close(descriptor)
            return [START, process]
        try:
            _prepare(descriptor, nursery)
            with socket.socket(fileno=descriptor) as connection:
                play_all(connection, self.environment)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)


def _prepare(descriptor: int, nursery: int) -> None:
    """Make a process of the user of what was forked, with one descriptor beside its output."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != nursery:
        os._exit(1)  # gone before it could be followed
    os.setsid()
    for other in map(int, os.listdir("/proc/self/fd")):
        if other > 2 and other != descriptor:
            with suppress(OSError):  # that of the list itself
                os.close(other)
    os.set_inheritable(descriptor, False)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))  # the nursery's is not the user's
    os.environ["OMP_NUM_THREADS"] = "1"  # as many processes as rollouts share the processors
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _ended(process: int, kill: bool) -> int:
    """Return the exit code of a process, which is killed if it does not end."""
    deadline = time.monotonic() + (0.0 if kill else EXIT_S)
    options = os.WEXITED | os.WNOWAIT | os.WNOHANG
    while os.waitid(os.P_PID, process, options) is None and time.monotonic() < deadline:
        time.sleep(0.002)
    # Before its id is free for another one. It has no group of its own if it ended at once.
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
