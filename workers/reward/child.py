"""Run a killable process: read items from the parent, write one line of answers for each.

The items are groups of samples to score, or calls of tools. The module is the script of the
process, and imports the standard library only, until the parent has sent the import path. Prints of
a scorer or a tool go to stderr; a process group of its own lets the parent end all processes that
were started here; the process ends itself when the parent is gone. Frames come in on stdin, JSON
lines go out on the original stdout. Time limits per item are the parent's.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import struct
import sys
import threading
import time
from typing import Any, BinaryIO, Protocol

HEADER = struct.Struct("<Q")  # length of the pickled frame that follows


class Server(Protocol):
    """Part of a killable process that answers items."""

    def prepare(self) -> object:
        """Get ready before the clock of the first item starts; return JSON for the parent."""

    def serve(self, item: Any) -> list[Any]:
        """Return the answer to one item, as JSON values. An error ends the process."""


def main() -> None:
    """Serve until the parent closes the pipe."""
    # Descriptors 0 and 1 are the server's from here on: nothing there writes results of its own.
    requests = os.fdopen(os.dup(0), "rb")
    results = os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    first = _read_frame(requests)
    if first is None:
        return
    threading.Thread(target=_end_with_parent, args=(first["parent"],), daemon=True).start()
    sys.path[:] = first["sys_path"]
    try:
        server = pickle.loads(first["server"])
        described = server.prepare()
    except BaseException as error:
        _write(results, ["error", f"{type(error).__name__}: {error}"])
        return
    _write(results, ["ready", described])
    _serve(requests, results, server, first["timeout_s"])


def _serve(requests: BinaryIO, results: int, server: Server, timeout_s: float) -> None:
    while (frame := _read_frame(requests)) is not None:
        _limit_cpu(timeout_s * len(frame))
        for item in frame:
            _write(results, server.serve(item))


def _read_frame(stream: BinaryIO) -> Any:
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    body = stream.read(length)
    return pickle.loads(body) if len(body) == length else None


def _write(descriptor: int, message: list[Any]) -> None:
    line = json.dumps(message).encode() + b"\n"
    while line:
        line = line[os.write(descriptor, line) :]


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def _limit_cpu(seconds: float) -> None:
    """Let the kernel end a loop that holds the interpreter lock after the parent has died."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    allowed = usage.ru_utime + usage.ru_stime + (seconds + 60.0) * (os.cpu_count() or 1)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(allowed) + 1
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


if __name__ == "__main__":
    main()
