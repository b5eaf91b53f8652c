"""Keep checkpoints on disk: complete and verified, or not there at all.

    <run>/checkpoints/step_000010/
        manifest.json    size and SHA-256 of every other file
        state.json       step, version, score, and the state of every part of the driver
        learner/         files of every rank: weights, optimizer, random states
        critic/ ...      the same of every other role with a state
    <run>/checkpoints/best -> step_000010

A folder is written under another name (`.partial`) and renamed when its manifest is on disk; a
folder to delete is renamed (`.removed`) before its files are deleted. So a folder with a
checkpoint's name is complete, even if a process was killed meanwhile. The driver runs this module,
which moves files; `saving.py` takes the checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.schema import TrainerConfig
from workers.data.durable_files import (
    FileRecord,
    first_fault,
    records_from_json,
    records_to_json,
    sync_folder,
    write_file,
)

FORMAT = 2
NAME = re.compile(r"step_(\d+)")
STATE, MANIFEST, BEST = "state.json", "manifest.json", "best"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        path: its folder.
        step: the last step before it was taken.
        version: of the learner's weights.
        score: of the metric by which the best is chosen; None if the metric was not measured.
        parts: name -> state of a part of the driver (the ledger, ...).
        folders: the subfolders that were filled, one for each role with a state.
    """

    path: Path
    step: int
    version: int
    score: float | None
    parts: Mapping[str, Any]
    folders: tuple[str, ...]

    def folder(self, name: str) -> Path:
        """Return the subfolder of a role.

        Raises:
            ValueError: the checkpoint was saved without that role.
        """
        if name not in self.folders:
            raise ValueError(
                f"{self.path} has no {name}/: it was saved without that role; resume with the "
                "configuration it was saved from, or start a new run"
            )
        return self.path / name


class Draft:
    """A checkpoint that is being written.

    Args:
        path: its folder, until it is renamed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def folder(self, name: str) -> Path:
        """Make an empty folder for the files of a role, and return it."""
        target = self.path / name
        target.mkdir(parents=True, exist_ok=True)
        return target

    def seal(self, state: Mapping[str, Any], records: Sequence[FileRecord]) -> None:
        """Write the driver's state, then the manifest over that state and the roles' files."""
        text = json.dumps({"format": FORMAT, **state}).encode()
        files = records_to_json([write_file(self.path / STATE, [text]), *records])
        manifest = {"format": FORMAT, "files": files, "sha256": _digest(files)}
        write_file(self.path / MANIFEST, [json.dumps(manifest, indent=1).encode()])
        sync_folder(self.path)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        run_dir: the run's folder.
        config: holds the number to keep and the metric of the best.
    """

    def __init__(self, run_dir: Path, config: TrainerConfig) -> None:
        self._dir = run_dir / "checkpoints"
        self._config = config

    def _path(self, step: int) -> Path:
        return self._dir / f"step_{step:06d}"

    def begin(self, step: int) -> Draft:
        """Make a draft for a checkpoint; remove the unfinished folders of earlier processes."""
        self._dir.mkdir(parents=True, exist_ok=True)
        self.recover()
        for leftover in self._leftovers():
            shutil.rmtree(leftover, ignore_errors=True)
        draft = self._path(step).with_suffix(".partial")
        draft.mkdir()
        return Draft(draft)

    def recover(self) -> None:
        """Give whole folders their names where an earlier process died between two renames.

        Only the driver that owns the run's folder may call this: another one's draft is whole for
        a moment, too.
        """
        for path in self._leftovers():
            final = path.with_suffix("")
            if not final.exists() and (path / MANIFEST).exists() and _fault(path) is None:
                path.rename(final)

    def _leftovers(self) -> list[Path]:
        """Return drafts, then replaced and removed folders, of processes that died."""
        return [*self._dir.glob("step_*.partial"), *self._dir.glob("step_*.removed")]

    def score_of(self, step: int) -> float | None:
        """Return the score of a step's checkpoint; None where it has none, or is not there."""
        try:
            score: float | None = json.loads((self._path(step) / STATE).read_text())["score"]
        except FileNotFoundError:
            return None
        return score

    def commit(self, draft: Draft) -> Path:
        """Give a sealed draft its name, mark the best checkpoint, and remove those not kept.

        A checkpoint of the same step is replaced: the old folder goes when the new one has its
        name. Whatever cannot be removed stays, and is tried again with the next checkpoint.
        """
        final = draft.path.with_suffix("")
        replaced = final.with_suffix(".removed")
        if final.exists():
            final.rename(replaced)
        draft.path.rename(final)
        sync_folder(self._dir)
        shutil.rmtree(replaced, ignore_errors=True)
        best = self._best()
        if best:
            self._mark(best[0])
        keep = {*best, *self._complete()[-self._config.keep_checkpoints :]}
        if self._config.keep_checkpoints:
            for old in self._complete():
                if old not in keep:
                    self._remove(old)
        return final

    def discard(self, draft: Draft) -> None:
        """Remove a draft that will not become a checkpoint, so that its space is free again."""
        shutil.rmtree(draft.path, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        gone = path.with_suffix(".removed")
        with contextlib.suppress(OSError):
            path.rename(gone)
            shutil.rmtree(gone)

    def _complete(self) -> list[Path]:
        named = (path for path in self._dir.glob("step_*") if NAME.fullmatch(path.name))
        return sorted(named, key=_step)

    def _best(self) -> list[Path]:
        """Return the best `keep_best` scored checkpoints, best first; of equal ones the newest."""
        scored = []
        for path in self._complete():
            score = json.loads((path / STATE).read_text())["score"]
            if score is not None:
                scored.append((score, path))
        sign = 1.0 if self._config.best_is == "max" else -1.0
        scored.sort(key=lambda item: (sign * item[0], _step(item[1])), reverse=True)
        return [path for _, path in scored[: self._config.keep_best]]

    def _mark(self, best: Path) -> None:
        draft = self._dir / f"{BEST}.partial"
        draft.unlink(missing_ok=True)
        draft.symlink_to(best.name)
        os.replace(draft, self._dir / BEST)

    def latest_path(self) -> Path | None:
        """Return the folder of the newest complete checkpoint, unverified."""
        complete = self._complete()
        return complete[-1] if complete else None

    def latest(self, name: str | None = None) -> Checkpoint | None:
        """Return the newest complete checkpoint, or the one called `name`; None if there is none.

        Every file is compared with the manifest before anything is read.

        Raises:
            ValueError: the checkpoint has another format, or differs from its manifest.
        """
        if name == BEST and (self._dir / BEST).exists():
            name = (self._dir / BEST).resolve().name
        complete = [path for path in self._complete() if name in (None, path.name)]
        if not complete:
            return None
        path = complete[-1]
        fault = _fault(path)
        if fault is not None:
            raise ValueError(f"{fault}; restore it, or {self._remedy(path)}")
        state = json.loads((path / STATE).read_text())
        return Checkpoint(
            path=path,
            step=state["step"],
            version=state["version"],
            score=state["score"],
            parts=state["parts"],
            folders=tuple(state["folders"]),
        )

    def _remedy(self, path: Path) -> str:
        older = [other for other in self._complete() if _step(other) < _step(path)]
        there = f"from {older[-1].name}" if older else "from the beginning"
        return f"remove the folder {path} to resume {there}"


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _fault(path: Path) -> str | None:
    """Describe the first fault of a checkpoint; None if every file is as written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        found, files = manifest["format"], manifest.get("files", {})
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        return f"{path / MANIFEST} can't be read ({type(error).__name__}: {error})"
    if found != FORMAT:
        return f"{path} has checkpoint format {found}, this version reads {FORMAT}"
    if manifest.get("sha256") != _digest(files):
        return f"{path / MANIFEST} is not what was written"
    return first_fault(path, records_from_json(files))


def _digest(files: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the manifest's entries."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
