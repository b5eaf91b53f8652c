"""Write finished groups, not yet trained, to a file of a checkpoint, and read them back.

The driver starts Ray tasks (`workers/data/record_files.py`) that write the trajectories and read
them back, so that no token passes through the driver. Data flows from the object store to one Arrow
file and from there to the object store; the driver receives metadata and places only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from workers.data.durable_files import FileRecord
from workers.data.plans import Slice
from workers.data.record_files import load_groups, write_groups
from workers.data.trajectory import RolloutGroup, TrajectoryMeta
from workers.worker_group import Pending

FILE = "groups.arrow"


_write = ray.remote(num_cpus=0, max_retries=1)(write_groups)
_read = ray.remote(num_cpus=0, max_retries=1, num_returns=2)(load_groups)


def begin_write(
    folder: Path, groups: Sequence[RolloutGroup], *, timeout_s: float
) -> Pending[FileRecord]:
    """Begin to write at least one group; the answer is one `FileRecord`."""
    slices, batches = places(groups)
    ref = _write.remote(str(folder / FILE), slices, *batches)
    return Pending("checkpoint", "write groups", [ref], timeout_s)


def places(groups: Sequence[RolloutGroup]) -> tuple[list[Slice], list[Any]]:
    """Return slices of all rows of the groups, and references to the batches they count."""
    batches: dict[Any, int] = {}  # reference -> number
    slices = []
    for group in groups:
        source = batches.setdefault(group.batch, len(batches))
        slices.append(Slice(batch=source, start=group.start, length=len(group.metas)))
    return slices, list(batches)


def read_groups(folder: Path, *, timeout_s: float) -> list[RolloutGroup]:
    """Read the groups of `begin_write`, in their order; an empty list if nothing was written."""
    if not (folder / FILE).exists():
        return []
    answer, batch = _read.remote(str(folder / FILE))
    metas: list[TrajectoryMeta] = Pending(
        "checkpoint", "read groups", [answer], timeout_s
    ).result()[0]
    return split_groups(metas, batch)


def split_groups(metas: Sequence[TrajectoryMeta], batch: Any) -> list[RolloutGroup]:
    """Join neighbouring rows of one group, in their order.

    Args:
        metas: metadata of every row.
        batch: reference to the rows' record batch.
    """
    groups, start = [], 0
    while start < len(metas):
        group_id, end = metas[start].group_id, start
        while end < len(metas) and metas[end].group_id == group_id:
            end += 1
        siblings = tuple(metas[start:end])
        groups.append(RolloutGroup(group_id=group_id, metas=siblings, batch=batch, start=start))
        start = end
    return groups
