"""Run a command in a process group that ends with the command, or with the process that asked.

The module is the script of two small processes above a judge's server, because vLLM's own processes
go on when their parent is killed. The first waits, and the second, which has another parent once
the first is gone, ends the group: Ray kills the children of a worker that ends, but not theirs.
Imports the standard library only.

    python guard.py OWNER COMMAND ARGUMENT ...     # as the leader of a new session
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys


def main(owner: int, command: list[str]) -> None:
    """Run a command until it or the owner, this process's parent, ends; then end the group."""
    leader = os.getpid()
    if os.fork() == 0:
        try:
            wait_for_one(leader)
        finally:
            os.killpg(0, signal.SIGKILL)
    server = subprocess.Popen(command)
    if os.getppid() == owner:
        wait_for_one(owner, server.pid)


def wait_for_one(*processes: int) -> None:
    """Return once one of some processes has ended."""
    poll = select.poll()
    for process in processes:
        try:
            poll.register(os.pidfd_open(process), select.POLLIN)
        except ProcessLookupError:
            return
    poll.poll()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
