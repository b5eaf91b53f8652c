"""Memory and processor time of everything that a process started, sampled while it runs.

Read from `/proc`. Memory is the proportional set size, in which a page that several processes share
counts once; shared memory and memory-mapped weights are in it. Processor time is what the
descendants used, those that have ended too; unlike the clock's, other work on the machine hardly
changes it. Linux only.
"""

import contextlib
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

LEAST_S = 1.0  # between two samples
SHARE = 0.02  # of one core, at most, goes into sampling
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def read_stat(proc: Path = Path("/proc")) -> dict[int, tuple[int, float]]:
    """Return the parent of every process, and the seconds of a core that it has used."""
    found = {}
    for folder in proc.iterdir():
        with contextlib.suppress(OSError, ValueError):  # it ended meanwhile, or is no process
            # "4711 (a name) S 12 ...": the name may hold anything, its bracket is the last one.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            used_s = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
            found[int(folder.name)] = int(fields[1]), used_s
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


class Usage:
    """Memory and processor time of this process's descendants since it was made.

    Attributes:
        peak_bytes: the highest sum of their memory.
        times: of the samples, in seconds of the wall clock.
        used_s: at each of these, the seconds of a core that they had used.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.times: list[float] = []
        self.used_s: list[float] = []
        self._of: dict[int, float] = {}

    def sample(self) -> None:
        """Read once."""
        now, found = time.time(), read_stat()
        pids = descendants(os.getpid(), {pid: parent for pid, (parent, _) in found.items()})
        self._of |= {pid: found[pid][1] for pid in pids}  # those that ended keep their last
        self.times.append(now)
        self.used_s.append(sum(self._of.values()))
        self.peak_bytes = max(self.peak_bytes, sum(map(proportional_bytes, pids)))

    def used_until(self, moment: float) -> float:
        """Return the seconds of a core used up to a moment, on a line between two samples."""
        after = bisect_right(self.times, moment)
        if after in (0, len(self.times)):
            return self.used_s[max(0, after - 1)] if self.used_s else 0.0
        (t0, t1), (u0, u1) = self.times[after - 1 : after + 1], self.used_s[after - 1 : after + 1]
        return u0 + (u1 - u0) * (moment - t0) / (t1 - t0)


@contextlib.contextmanager
def watched() -> Iterator[Usage]:
    """Yield the usage of this process's descendants, which a thread keeps up to date."""
    usage, over = Usage(), threading.Event()

    def watch() -> None:
        wait_s = LEAST_S
        while not over.wait(wait_s):
            began = time.thread_time()
            usage.sample()
            wait_s = max(LEAST_S, (time.thread_time() - began) / SHARE)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        over.set()
        thread.join()
