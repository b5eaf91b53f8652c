"""Check the folders that Ray and vLLM use by themselves: the home, and those of their sockets.

Runs in the process of `ballast doctor`, and in that of `train`, which refuses to start where a
folder can't serve. Creates nothing that stays.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from conf.schema import TrainConfig
from orchestrator.planning.doctor.findings import Finding, fault, ok

SOCKET_BYTES = 107  # of a socket's path on Linux (unix(7)), without the end
# What Ray and vLLM put below their folder, at its longest.
RAY_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
VLLM_SOCKET = "ballast-engine-00000000/00000000-0000-0000-0000-000000000000"


def check(config: TrainConfig) -> list[Finding]:
    """Run every check of this module."""
    return [home(), *sockets(config)]


def home() -> Finding:
    """Check that files can be written in the user's home: Ray's token, kernels of the engines."""
    remedy = "set HOME to a folder that you may write"
    try:
        folder = Path.home()
        with tempfile.TemporaryFile(dir=existing(folder)):
            return ok("home", f"{folder} can be written")
    except (OSError, RuntimeError) as error:
        return fault("home", f"Ray keeps its token there, and vLLM its kernels: {error}", remedy)


def sockets(config: TrainConfig) -> Iterator[Finding]:
    """Check that the paths of sockets below the temporary folders are short enough."""
    wanted = [("TMPDIR", Path(tempfile.gettempdir()), VLLM_SOCKET)]
    if config.cluster.address is None:
        wanted.append(("RAY_TMPDIR", ray_folder(), RAY_SOCKET))
    for variable, folder, socket in wanted:
        room = SOCKET_BYTES - 1 - len(socket)
        if (length := len(os.fsencode(folder))) > room:
            yield fault(
                "sockets",
                f"{folder} has {length} bytes, and a socket's path below it has more than Linux "
                f"allows, {SOCKET_BYTES}",
                f"set {variable} to a folder of at most {room} bytes, such as /tmp",
            )


def ray_folder() -> Path:
    """Return the folder below which Ray keeps its session, as Ray finds it."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest folder above that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder
