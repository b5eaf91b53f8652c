"""Groups that are finished and not yet trained, as a subfolder of a checkpoint.

With `schedule.max_staleness > 0` engines run ahead of the learner: what they have finished when a
checkpoint is taken is kept with it and trained by the resumed run; what they are still sampling is
sampled again. Synchronous runs have nothing to keep.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.supply.group_files import begin_write, read_groups
from orchestrator.supply.producer import Producer
from workers.data.durable_files import FileRecord
from workers.worker_group import Pending


class BufferedGroups:
    """What the producer holds in its hands: a `Keeper` of `saving.py`."""

    def __init__(self, producer: Producer, *, timeout_s: float) -> None:
        self._producer, self._timeout_s = producer, timeout_s
        self._writing: Pending[FileRecord] | None = None

    def begin_save(self, folder: Path) -> None:
        """Begin to write the finished groups; trajectories never change, so nothing is copied."""
        groups = self._producer.finished_groups()
        self._writing = begin_write(folder, groups, timeout_s=self._timeout_s) if groups else None

    def saved(self, *, wait: bool) -> list[FileRecord] | None:
        """The one file, or none where there was no group."""
        if self._writing is None:
            return []
        if not wait and not self._writing.ready():
            return None
        return self._writing.result()

    def load(self, folder: Path) -> None:
        """Hand the groups to the producer."""
        self._producer.adopt(read_groups(folder, timeout_s=self._timeout_s))
