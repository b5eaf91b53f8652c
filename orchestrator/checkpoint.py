"""Checkpoints on disk: written beside, then renamed, so that a folder with its name is complete.

    <run>/checkpoints/step_000010/
        state.json     step, version, ledger: what the driver needs
        learner/       what every rank wrote: weights, optimizer, scheduler, random states
        critic/        the same of the critic's ranks, where the algorithm has one

The learner's part is written by its ranks between `begin` and `commit`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int
    version: int
    ledger: dict[str, Any]

    @property
    def learner_dir(self) -> Path:
        """What the ranks read."""
        return self.path / "learner"


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        self._dir = run_dir / "checkpoints"
        self._keep = keep

    def _path(self, step: int) -> Path:
        return self._dir / f"step_{step:06d}"

    def begin(self, step: int) -> Path:
        """An empty folder for the ranks to write to; not yet a checkpoint."""
        draft = self._path(step).with_suffix(".partial")
        shutil.rmtree(draft, ignore_errors=True)
        (draft / "learner").mkdir(parents=True)
        return draft / "learner"

    def commit(self, step: int, *, version: int, ledger: dict[str, Any]) -> Path:
        """Make the folder of `begin` a checkpoint, then remove the oldest."""
        draft, final = self._path(step).with_suffix(".partial"), self._path(step)
        state = {"format": FORMAT, "step": step, "version": version, "ledger": ledger}
        (draft / "state.json").write_text(json.dumps(state))
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        if self._keep:
            for old in self._complete()[: -self._keep]:
                shutil.rmtree(old)
        return final

    def _complete(self) -> list[Path]:
        return sorted(p for p in self._dir.glob("step_*") if not p.name.endswith(".partial"))

    def latest(self, name: str | None = None) -> Checkpoint | None:
        """The newest complete checkpoint, or the one called `name`; None where there is none.

        Raises:
            ValueError: when it was written in another format or is damaged.
        """
        complete = [path for path in self._complete() if name in (None, path.name)]
        if not complete:
            return None
        path = complete[-1]
        try:
            state = json.loads((path / "state.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path}/state.json can't be read ({error}); remove that folder to resume "
                "from the checkpoint before it"
            ) from error
        if state["format"] != FORMAT:
            raise ValueError(
                f"{path} has checkpoint format {state['format']}, this version reads {FORMAT}"
            )
        return Checkpoint(
            path=path, step=state["step"], version=state["version"], ledger=state["ledger"]
        )
