"""Rollouts on disk: one Parquet file per step, trajectories with everything computed of them.

Written by a Ray task beside the run, so that neither the driver nor a rank touches the tokens for
it. Files are written beside and renamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from workers.group import Pending
from workers.plans import Slice, step_table
from workers.trajectory import join_computed


@ray.remote(num_cpus=0, max_retries=1)
def _write(path: str, slices: Sequence[Slice], num_computed: int, *batches: pa.RecordBatch) -> int:
    table = step_table(slices, batches[num_computed:])
    table = join_computed(table, batches[:num_computed])
    draft = Path(path).with_suffix(".partial")
    pq.write_table(table, draft, compression="zstd")
    draft.rename(path)
    return int(table.num_rows)


class Recorder:
    """Writes steps in the background, at most one at a time."""

    def __init__(self, folder: Path, *, timeout_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._timeout_s = folder, timeout_s
        self._last: Pending | None = None

    def write(
        self, step: int, slices: Sequence[Slice], batches: Sequence[Any], computed: Sequence[Any]
    ) -> None:
        """Begin to write `step_<step>.parquet`; waits for the step before."""
        self.flush()
        path = str(self._folder / f"step_{step:06d}.parquet")
        ref = _write.remote(path, slices, len(computed), *computed, *batches)
        self._last = Pending("recorder", "write", [ref], self._timeout_s)

    def flush(self) -> None:
        """Return when everything begun is on disk."""
        if self._last is not None:
            self._last.result()
            self._last = None
