"""Memory of everything that a process started, sampled while it runs.

Read from `/proc`: the proportional set size, in which a page that several processes share counts
once. Shared memory and memory-mapped weights are in it. Linux only.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

LEAST_S = 1.0  # between two samples
SHARE = 0.02  # of one core, at most, goes into sampling


def parents(proc: Path = Path("/proc")) -> dict[int, int]:
    """Return the parent of every process."""
    found = {}
    for folder in proc.iterdir():
        with contextlib.suppress(OSError, ValueError):  # it ended meanwhile, or is no process
            # "4711 (a name) S 12 ...": the name may hold anything, its bracket is the last one.
            found[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
    return found


def descendants(of: int, parent_of: dict[int, int]) -> set[int]:
    """Return the children of a process, theirs, and so on.

    Example: descendants(1, {1: 0, 2: 1, 3: 2, 9: 0}) is {2, 3}.
    """
    found: set[int] = set()
    newest = {of}
    while newest:
        newest = {pid for pid, parent in parent_of.items() if parent in newest} - found
        found |= newest
    return found


def proportional_bytes(pid: int, proc: Path = Path("/proc")) -> int:
    """Return the proportional set size of a process; 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in (proc / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


class Peak:
    """Highest sum so far of what this process's descendants hold.

    Attributes:
        num_bytes: the sum.
    """

    def __init__(self) -> None:
        self.num_bytes = 0

    def sample(self) -> None:
        """Read once."""
        pids = descendants(os.getpid(), parents())
        self.num_bytes = max(self.num_bytes, sum(map(proportional_bytes, pids)))


@contextlib.contextmanager
def watched() -> Iterator[Peak]:
    """Yield the peak of this process's descendants, which a thread keeps up to date."""
    peak, over = Peak(), threading.Event()

    def watch() -> None:
        wait_s = LEAST_S
        while not over.wait(wait_s):
            began = time.thread_time()
            peak.sample()
            wait_s = max(LEAST_S, (time.thread_time() - began) / SHARE)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
