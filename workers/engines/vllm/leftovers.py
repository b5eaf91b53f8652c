"""Keep what vLLM leaves on a node in a folder of its own, and clear the folders of dead engines.

vLLM makes three sockets per engine in the temporary folder, and semaphores and buffers in /dev/shm,
which stay where its processes get no chance to remove them (SIGKILL, out of memory). Sockets go
into a folder that belongs to one rollout worker, and the names in /dev/shm are listed there. The
folder's lock is held as long as the worker lives, whatever ends it: a folder that can be locked has
no owner any more. Runs in the rollout worker's process, at the start and the end of its engine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

SOCKETS_VARIABLE = "VLLM_RPC_BASE_PATH"
PREFIX, LOCK, NAMES = "ballast-engine-", "lock", "shared_memory"
SHARED_MEMORY = Path("/dev/shm")
OF_VLLM = re.compile(r"/dev/shm/((?:sem\.mp-|psm_|vllm_dist_)\S+)$", re.MULTILINE)


class EngineFolder:
    """Folder of one engine's leftovers, which this process owns.

    Args:
        parent: where the folders of all engines of a node are; the temporary folder by default.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or Path(tempfile.gettempdir())
        clear_dead(parent)
        new = Path(tempfile.mkdtemp(prefix="ballast-new-", dir=parent))
        self._lock = os.open(new / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = parent / new.name.replace("ballast-new-", PREFIX)
        new.rename(self.path)  # visible to others only with its lock held

    def use_for_sockets(self) -> None:
        """Let vLLM make its sockets in this folder."""
        os.environ[SOCKETS_VARIABLE] = str(self.path)

    def list_shared_memory(self) -> None:
        """List the files in /dev/shm that this process and those below it use now."""
        names = sorted(set(_mapped_names()))
        (self.path / NAMES).write_text("\n".join(names))

    def remove(self) -> None:
        """Remove the folder and all that is listed in it; the engine has ended."""
        _remove(self.path)
        os.close(self._lock)


def clear_dead(parent: Path) -> None:
    """Remove what engines left that have ended; those of other users stay."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # of another user, or somebody else clears it now
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
            finally:
                os.close(descriptor)


def _remove(folder: Path) -> None:
    names = folder / NAMES
    for name in names.read_text().splitlines() if names.exists() else ():
        (SHARED_MEMORY / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _mapped_names() -> Iterator[str]:
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(OSError):  # it has ended
            yield from _names_in(Path(f"/proc/{process.pid}/maps").read_text())


def _names_in(maps: str) -> Iterable[str]:
    """Return the names of vLLM's files among the mappings of a process, as Linux lists them."""
    return OF_VLLM.findall(maps)
