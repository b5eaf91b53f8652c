"""Choose the memory allocator of a rank that computes on a CPU, before the rank's process starts.

The driver puts the variables into the environment of every rank without a GPU. Imports neither
torch nor Ray, and allocates nothing itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

PRELOADED = "LD_PRELOAD"
# Freed pages stay for the tensors of the next step, and are not given back to the kernel.
JEMALLOC = {"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}
# Small freed blocks in glibc's cache for each thread lie between large ones, which then can't be
# joined, and tensors of the next step are laid above them.
TUNABLES = "GLIBC_TUNABLES"
GLIBC = {TUNABLES: "glibc.malloc.tcache_count=0"}


def allocator_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which a rank on CPUs starts, on Linux; other systems ignore them.

    jemalloc, which Ray's package brings, where it is there; glibc is tuned for nodes on which that
    file is elsewhere, and for drivers without one. Memory that glibc does not return to
    the kernel ends in pieces: torch asks for a little more than a tensor has, so as to align it,
    and small blocks, as autograd's, settle in the rest; a freed tensor of the same size does not
    fit its own place again. jemalloc keeps small blocks apart from large ones.

    Args:
        given: environment of the driver. A tuning of glibc by the user stays, and so does what the
            user loads ahead: the first allocator among that is the one in use.
    """
    if TUNABLES in given:
        return {}
    found = jemalloc()
    if found is None:
        return dict(GLIBC)
    ahead = given.get(PRELOADED)
    preloaded = {PRELOADED: f"{ahead}:{found}" if ahead else str(found)}
    return GLIBC | preloaded | ({} if "MALLOC_CONF" in given else JEMALLOC)


def jemalloc() -> Path | None:
    """Find the jemalloc of Ray's package; None where the package has none."""
    package = importlib.util.find_spec("ray")
    if package is None or package.origin is None:
        return None
    library = Path(package.origin).parent / "core" / "libjemalloc.so"
    return library if library.is_file() else None
