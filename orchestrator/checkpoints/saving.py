"""Take checkpoints of a run in the background, at most one at a time, and restore the last one.

    process   does                                                   while
    driver    copies the state of its parts; asks the keepers        the loop waits
    ranks     copy their slices to host memory                       the loop waits
    ranks     write and hash their files in a thread                 the next steps run
    driver    seals and renames the folder once all have written     a step ends

A part of the driver with a small state (`Stateful`) and an owner of a large one (`Keeper`: the
ranks of a role, the groups that are sampled but not trained) take part by being named; nothing else
has to know of them. The driver runs this module; the layout on disk is `checkpoint.py`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestrator.checkpoints.checkpoint import Checkpoint, CheckpointStore, Draft
from workers.calls import bind
from workers.data.durable_files import FileRecord
from workers.learner.rank_worker import RankWorker
from workers.worker_group import WorkerError, WorkerGroup


class Stateful(Protocol):
    """A part of the driver whose state a checkpoint holds as JSON."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data, a copy."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""


class Keeper(Protocol):
    """Owner of a state that fills a subfolder of a checkpoint with files."""

    def begin_save(self, folder: Path) -> None:
        """Begin to write the state of this moment; return when the state may change."""

    def saved(self, *, wait: bool) -> list[FileRecord] | None:
        """Return the files of the last `begin_save`, relative to its folder; None if not ready."""

    def load(self, folder: Path) -> None:
        """Continue from the files of a checkpoint."""


class RankKeeper:
    """Keeper of one role's ranks, each of which writes its own slices.

    Args:
        group: of the ranks.
        timeout_s: longest that the ranks may take to copy, to write or to load.
    """

    def __init__(self, group: WorkerGroup[RankWorker], *, timeout_s: float) -> None:
        self._group, self._timeout_s = group, timeout_s

    def begin_save(self, folder: Path) -> None:
        """Copy every rank's state to host memory."""
        self._group.call(bind(RankWorker.begin_save, str(folder)), timeout_s=self._timeout_s)

    def saved(self, *, wait: bool) -> list[FileRecord] | None:
        """Return the files of all ranks, or None while one is writing."""
        answers = self._group.call(bind(RankWorker.saved, wait), timeout_s=self._timeout_s)
        written = [answer for answer in answers if answer is not None]
        if len(written) < len(answers):
            return None
        return [record for answer in written for record in answer]

    def load(self, folder: Path) -> None:
        """Load on every rank the slices that the rank needs."""
        self._group.call(bind(RankWorker.load, str(folder)), timeout_s=self._timeout_s)


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written; the message names the last good one."""


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A checkpoint whose files are being written."""

    step: int
    draft: Draft
    state: Mapping[str, Any]
    began: float
    snapshot_s: float


class Saver:
    """Saver of checkpoints; restores one as well.

    Args:
        store: keeps the checkpoints on disk.
        parts: name -> part of the driver.
        keepers: subfolder -> keeper that fills it.
        before_commit: called when the files are written; returns when all else that belongs to the
            step is on disk too.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        parts: Mapping[str, Stateful],
        keepers: Mapping[str, Keeper],
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._parts, self._keepers = store, parts, keepers
        self._before_commit = before_commit
        self._pending: _Pending | None = None

    def begin(self, step: int, *, version: int, score: float | None) -> None:
        """Take a checkpoint of this moment; return when training may go on.

        The checkpoint before is completed first.

        Raises:
            CheckpointError: the checkpoint before, or this one, could not be written.
        """
        self.finish()
        began = time.monotonic()
        if score is None:  # a step that is saved again keeps the score that it has
            score = self._store.score_of(step)
        try:
            draft = self._store.begin(step)
            for name, keeper in self._keepers.items():
                keeper.begin_save(draft.folder(name))
        except OSError as error:
            raise self._failed(step, error) from error
        state = {
            "step": step,
            "version": version,
            "score": score,
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "folders": list(self._keepers),
        }
        self._pending = _Pending(
            step=step,
            draft=draft,
            state=state,
            began=began,
            snapshot_s=time.monotonic() - began,
        )

    def poll(self) -> dict[str, float]:
        """Complete the begun checkpoint if its files are written; return its metrics if so.

        Raises:
            CheckpointError: the checkpoint could not be written.
        """
        return self._collect(wait=False)

    def finish(self) -> dict[str, float]:
        """Wait for the begun checkpoint and complete it; return its metrics if there was one.

        Raises:
            CheckpointError: the checkpoint could not be written.
        """
        return self._collect(wait=True)

    def finish_quietly(self) -> None:
        """Finish without an error of its own, so that the user reads the failure before it."""
        with contextlib.suppress(Exception):
            self.finish()

    def _collect(self, *, wait: bool) -> dict[str, float]:
        pending = self._pending
        if pending is None:
            return {}
        records: list[FileRecord] = []
        try:
            for name, keeper in self._keepers.items():
                written = keeper.saved(wait=wait)
                if written is None:
                    return {}
                records += [record.within(name) for record in written]
            self._before_commit()
            pending.draft.seal(pending.state, records)
            self._store.commit(pending.draft)
        except (WorkerError, OSError) as error:
            self._pending = None
            self._store.discard(pending.draft)
            raise self._failed(pending.step, error) from error
        self._pending = None
        return {
            "checkpoint/snapshot_s": pending.snapshot_s,
            "checkpoint/total_s": time.monotonic() - pending.began,
            "checkpoint/bytes": float(sum(record.num_bytes for record in records)),
        }

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        last = self._store.latest_path()
        left = "there is no earlier one" if last is None else f"{last} is the last one"
        return CheckpointError(
            f"the checkpoint of step {step} could not be written ({error}); {left}. Mend that "
            "and go on with resume=auto"
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Set every part and every keeper to the state that the checkpoint holds.

        Raises:
            ValueError: the checkpoint lacks a part or a keeper of this run.
        """
        for name, part in self._parts.items():
            if name not in checkpoint.parts:
                raise ValueError(
                    f"{checkpoint.path} has no state of the {name}; resume with the configuration "
                    "it was saved from, or start a new run"
                )
            part.load_state_dict(checkpoint.parts[name])
        for name, keeper in self._keepers.items():
            keeper.load(checkpoint.folder(name))
