"""Keep the groups that are finished and not yet trained, as a subfolder of a checkpoint.

With `schedule.max_staleness > 0` engines run ahead of the learner: the groups that are finished
when the driver takes a checkpoint are kept with it and trained by the resumed run; groups that are
still being sampled are not kept, but sampled again. Synchronous runs have nothing to keep.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.supply.group_files import begin_write, read_groups
from orchestrator.supply.producer import Producer
from workers.data.durable_files import FileRecord
from workers.worker_group import Pending


class BufferedGroups:
    """Keeper (`saving.py`) of the producer's finished groups.

    Args:
        producer: supplies the groups, and takes them back after a resume.
        timeout_s: longest that writing or reading them may take.
    """

    def __init__(self, producer: Producer, *, timeout_s: float) -> None:
        self._producer, self._timeout_s = producer, timeout_s
        self._writing: Pending[FileRecord] | None = None

    def begin_save(self, folder: Path) -> None:
        """Begin to write the finished groups; trajectories never change, so nothing is copied."""
        groups = self._producer.finished_groups()
        self._writing = begin_write(folder, groups, timeout_s=self._timeout_s) if groups else None

    def saved(self, *, wait: bool) -> list[FileRecord] | None:
        """Return the one file, or no file if there was no group; None while it is not written."""
        if self._writing is None:
            return []
        if not wait and not self._writing.ready():
            return None
        return self._writing.result()

    def load(self, folder: Path) -> None:
        """Read the groups and give them back to the producer."""
        self._producer.restore_groups(read_groups(folder, timeout_s=self._timeout_s))
