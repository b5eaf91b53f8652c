"""Record rollouts: one Parquet file per step, trajectories with every column computed from them.

The driver starts a Ray task (`workers/data/record_files.py`) that writes the file, so that neither
the driver nor a rank reads the tokens for it. Records are read in
`orchestrator/supply/recording.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workers.data.plans import Slice
from workers.data.record_files import write_step
from workers.worker_group import NoAnswerError, Pending

_write = ray.remote(num_cpus=0, max_retries=1)(write_step)


class Recorder:
    """Writer of recorded steps, in the background, at most one at a time.

    Args:
        folder: for the files; made if missing.
        timeout_s: longest that writing one step may take.
        node: id of the node that writes while it lives; the driver's node may be a small head.
    """

    def __init__(self, folder: Path, *, timeout_s: float, node: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        near = NodeAffinitySchedulingStrategy(node, soft=True)
        self._task = _write.options(scheduling_strategy=near)
        self._folder, self._timeout_s = folder, timeout_s
        self._last: Pending[int] | None = None
        self._arguments: tuple[Any, ...] = ()  # of the last call

    def write(
        self, step: int, slices: Sequence[Slice], batches: Sequence[Any], computed: Sequence[Any]
    ) -> None:
        """Begin to write `step_<step>.parquet`; first wait for the step before."""
        self.flush()
        path = str(self._folder / f"step_{step:06d}.parquet")
        self._arguments = (path, slices, len(computed), *computed, *batches)
        self._last = self._begin()

    def _begin(self) -> Pending[int]:
        ref = self._task.remote(*self._arguments)
        return Pending("recorder", "write", [ref], self._timeout_s)

    def flush(self) -> None:
        """Wait until every step that was begun is on disk.

        A process that hangs is ended, and another one writes the step, once.

        Raises:
            WorkerError: the step can't be written.
        """
        if self._last is not None:
            try:
                self._last.result()
            except NoAnswerError:
                ray.cancel(self._last.refs[0], force=True)
                self._last = self._begin()
                self._last.result()
            self._last, self._arguments = None, ()
