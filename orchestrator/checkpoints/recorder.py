"""Record rollouts: one Parquet file per step, trajectories with every column computed from them.

Samples that failed have a file of their own, `failed/step_<step>.parquet`, in steps that have any.
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

FAILED = "failed"  # the subfolder
_write = ray.remote(num_cpus=0, max_retries=1)(write_step)


class Recorder:
    """Writer of recorded steps, in the background, at most one step at a time.

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
        self._running: list[tuple[tuple[Any, ...], Pending[int]]] = []  # arguments, answer

    def write(
        self, step: int, slices: Sequence[Slice], batches: Sequence[Any], computed: Sequence[Any]
    ) -> None:
        """Begin to write `step_<step>.parquet`; first wait for what was begun before."""
        self.flush()
        self._begin(self._folder, step, slices, (len(computed), *computed, *batches))

    def write_failed(self, step: int, rows: Sequence[tuple[Any, int]]) -> None:
        """Begin to write the samples of a step that failed, if any; wait for the step before.

        Args:
            step: whose `write` comes after.
            rows: reference of a record batch, and the number of a row in it.
        """
        if not rows:
            return
        self.flush()
        numbers = {batch: number for number, batch in enumerate(dict(rows))}
        slices = [Slice(batch=numbers[batch], start=row, length=1) for batch, row in rows]
        folder = self._folder / FAILED
        folder.mkdir(exist_ok=True)
        self._begin(folder, step, slices, (0, *numbers))

    def _begin(
        self, folder: Path, step: int, slices: Sequence[Slice], columns: tuple[Any, ...]
    ) -> None:
        arguments = (str(folder / f"step_{step:06d}.parquet"), slices, *columns)
        self._running.append((arguments, self._send(arguments)))

    def _send(self, arguments: tuple[Any, ...]) -> Pending[int]:
        return Pending("recorder", "write", [self._task.remote(*arguments)], self._timeout_s)

    def flush(self) -> None:
        """Wait until every step that was begun is on disk.

        A process that hangs is ended, and another one writes the step, once.

        Raises:
            WorkerError: the step can't be written.
        """
        while self._running:
            arguments, pending = self._running.pop(0)
            try:
                pending.result()
            except NoAnswerError:
                ray.cancel(pending.refs[0], force=True)
                self._send(arguments).result()
