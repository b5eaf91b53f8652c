"""Find the processes of a chaos run, and kill, stop, or cut off one of them.

Every process that the run starts, on every node, inherits a marked environment. Used by `chaos.py`.
Judges nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import psutil

MARK = "BALLAST_CHAOS"
# Role -> one of these is in the title of its process. A recorder is a task of Ray, and stands in a
# process that idles in between.
TITLES = {
    "engine worker": ("ray::RolloutWorker",),
    "EngineCore": ("EngineCore",),
    "engine's TP worker": ("VLLM::Worker_TP",),
    "reward worker": ("ray::RewardWorker",),
    "reward child": ("reward/child.py",),
    "learner rank": ("ray::PolicyWorker",),
    "recorder": ("ray::write_step", "ray::copy_batch", "ray::IDLE"),
    "driver": ("orchestrator.cli train",),
}


def marked(mark: str) -> list[psutil.Process]:
    """Return the living processes of a run, but not this process."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def of_role(role: str, mark: str) -> list[psutil.Process]:
    """Return the processes of a role, oldest first."""
    found = []
    for process in marked(mark):
        with contextlib.suppress(psutil.Error, OSError):
            title = " ".join(process.cmdline())
            if any(word in title for word in TITLES[role]):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def strike(process: psutil.Process, fault: str, *, seconds: float) -> None:
    """Do to a process what `fault` says.

    Args:
        process: the victim.
        fault: "killed" (SIGKILL), "stopped" (SIGSTOP, for ever), or "cut off": silent for
            `seconds`, and then back with all that it knew, as after a partition of the network.
        seconds: of a process that is cut off.
    """
    process.send_signal(signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
    if fault == "cut off":
        threading.Thread(target=_continue, args=(process, seconds), daemon=True).start()


def _continue(process: psutil.Process, seconds: float) -> None:
    time.sleep(seconds)
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGCONT)


def end_all(mark: str) -> int:
    """Kill what is left of a run; return how many processes that were."""
    left = marked(mark)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=10)
    return len(left)
