"""Run one agent and end it with everything it started: the script of the keeper process.

A rollout worker starts one keeper for each agent and sends it a job, a line of JSON on stdin. The
keeper starts the command in a process group of its own, keeps the end of its output, and writes one
line of JSON to stdout when no process of the agent is left. The agent is ended when stdin closes,
which it does when the worker closes it or dies. The keeper is the
"subreaper" of its descendants (prctl(2)), so that a process which leaves the agent's group, or
whose parent ends, is found too. Imports the standard library only, and speaks to no network.

    job     {"command": [...], "variables": {...}, "folder": "...",
             "result": ".../result.json", "tail_bytes": 2000, "result_bytes": 65536}
    report  {"code": 0, "seconds": 1.3, "tail": "...", "result": "..."}
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
READ_BYTES = 1 << 16
END_LIMIT_S = 10.0  # for a tree of processes that starts new ones while it is ended


def main() -> None:
    """Run the job of stdin, and report."""
    job = json.loads(sys.stdin.buffer.readline())
    # A parent that ends must leave its children to this process, not to the system's first one.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    report = _run(job)
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(report).encode() + b"\n")


def _run(job: dict[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            job["command"],
            cwd=job["folder"],
            env=job["variables"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return _report(None, began, tail=f"the command can't be started: {error}".encode())
    assert process.stdout is not None
    output = process.stdout.fileno()
    tail, exited = _follow(process, output, job["tail_bytes"])
    code = process.wait() if exited else None
    end_descendants()
    os.set_blocking(output, False)
    with contextlib.suppress(BlockingIOError):
        while block := os.read(output, READ_BYTES):
            tail = (tail + block)[-job["tail_bytes"] :]
    return _report(
        code,
        began,
        tail=tail,
        result=_read(job["result"], job["result_bytes"]),
    )


def _follow(process: subprocess.Popen[bytes], output: int, tail_bytes: int) -> tuple[bytes, bool]:
    """Keep the end of the output until the agent exits, or until stdin closes.

    Returns:
        The end of the output, and True if the agent exited.
    """
    exited = os.pidfd_open(process.pid)
    poll = select.poll()
    for descriptor in (exited, output, 0):
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
    tail = b""
    try:
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if output in ready:
                block = os.read(output, READ_BYTES)
                tail = (tail + block)[-tail_bytes:]
                if not block:
                    poll.unregister(output)
            if exited in ready or 0 in ready:
                return tail, exited in ready
    finally:
        os.close(exited)


def end_descendants() -> None:
    """End all descendants of this process; return when none is left, or after `END_LIMIT_S`."""
    deadline = time.monotonic() + END_LIMIT_S
    while _has_children() and time.monotonic() < deadline:
        # By groups: a process that starts others can't outrun the end of its whole group.
        for group in _groups_of_descendants() - {os.getpgrp()}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        time.sleep(0.002)


def _has_children() -> bool:
    """Take the ends of children that ended; return True if there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _groups_of_descendants() -> set[int]:
    """Return the process groups of the living descendants that /proc shows."""
    children: dict[int, list[tuple[int, int]]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            # The name of a program stands in parentheses, and may contain any character.
            state, parent, group = file.read().rpartition(b")")[2].split()[:3]
            if state != b"Z":
                children.setdefault(int(parent), []).append((int(name), int(group)))
    groups: set[int] = set()
    todo, seen = [os.getpid()], {os.getpid()}
    while todo:
        new = [found for found in children.get(todo.pop(), ()) if found[0] not in seen]
        seen.update(process for process, _ in new)
        groups.update(group for _, group in new)
        todo += [process for process, _ in new]
    return groups


def _read(path: str, limit: int) -> str | None:
    """Return the first `limit` bytes of a file as text, plus one where it is longer; or None."""
    with contextlib.suppress(OSError):
        # Not blocking: the agent may have made something else than a file of it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            return file.read(limit + 1).decode(errors="replace")
    return None


def _report(
    code: int | None,
    began: float,
    *,
    tail: bytes,
    result: str | None = None,
) -> dict[str, Any]:
    return {
        "code": code,
        "seconds": time.monotonic() - began,
        "tail": tail.decode(errors="replace"),
        "result": result,
    }


if __name__ == "__main__":
    main()
