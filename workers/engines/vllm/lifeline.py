"""Lifeline of vLLM's processes: the end of their owner, the process that started them, ends them.

vLLM's EngineCore outlives an owner that gets no chance to shut it down (SIGKILL, out of memory, a
Ray actor that is killed). The owner, a rollout worker, leaves its process id in the environment;
every vLLM worker watches that process. Nothing else flows here, and nothing is restarted.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading

OWNER_VARIABLE = "BALLAST_ENGINE_OWNER_PID"


def declare_owner() -> None:
    """Make this process the owner of the vLLM processes that it starts from here on."""
    os.environ[OWNER_VARIABLE] = str(os.getpid())


def follow_owner() -> None:
    """Watch the owner from a background thread; do nothing in the owner itself."""
    owner = int(os.environ.get(OWNER_VARIABLE, os.getpid()))
    if owner == os.getpid():
        return
    # With tensor parallelism this is a worker and its parent EngineCore, which watches no process.
    core = os.getppid()
    threading.Thread(target=_end_after, args=(owner, core), daemon=True).start()


def _end_after(owner: int, core: int) -> None:
    try:
        descriptor = os.pidfd_open(owner)
    except ProcessLookupError:
        descriptor = -1  # gone already
    if descriptor >= 0:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()  # readable once the owner has ended
    if core not in (owner, 1) and os.getppid() == core:
        with contextlib.suppress(ProcessLookupError):
            os.kill(core, signal.SIGKILL)
    os._exit(1)
