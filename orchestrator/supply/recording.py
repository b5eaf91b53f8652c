"""Read a recorded run: find its steps, check their files, and load one step as groups.

`orchestrator/checkpoints/recorder.py` wrote the record. In the driver, `Recording.open` reads the
footers of the files only; a Ray task reads the trajectories of a step into the object store, and
the driver receives metadata and places. Columns that were computed from the trajectories
(`advantages`, ...) are not read: a replay computes its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from orchestrator.checkpoints.recorder import FAILED
from orchestrator.supply.group_files import split_groups
from workers.data.record_files import load_step
from workers.data.trajectory import SCHEMA, SCHEMA_VERSION, VERSION_KEY, RolloutGroup
from workers.worker_group import Pending

ROLLOUTS = "rollouts"  # the subfolder of a run
NAME = re.compile(r"step_(\d+)\.parquet")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The recorded steps of a run.

    Attributes:
        run_dir: the run's folder.
        files: one per step, in order.
    """

    run_dir: Path
    files: tuple[Path, ...]

    @classmethod
    def open(cls, run_dir: Path) -> Recording:
        """Find the steps and check every footer.

        Raises:
            ValueError: no run, no step, a step that is missing, cut off or of another schema; the
                message names the file and the remedy.
        """
        if not (run_dir / "config.yaml").exists():
            raise ValueError(
                f"rollout.replay.folder={run_dir} is not a run's folder (no config.yaml); name the "
                f"folder that holds {ROLLOUTS}/"
            )
        files = steps_in(run_dir)
        if not files:
            raise ValueError(
                f"rollout.replay.folder={run_dir} holds no recorded step in {ROLLOUTS}/; record "
                "with tracking.rollouts=true"
            )
        numbers = [step_number(file) for file in files]
        missing = sorted(set(range(numbers[0], numbers[-1])) - set(numbers))
        if missing:
            raise ValueError(
                f"{files[0].parent} lacks step {missing[0]} between {numbers[0]} and "
                f"{numbers[-1]}; restore its file, or remove those after it"
            )
        for file in files:
            check_footer(file)
        return cls(run_dir=run_dir, files=tuple(files))

    def check_tokens(self, vocab_size: int) -> None:
        """Refuse token ids that a model of `vocab_size` does not have.

        Raises:
            ValueError: names the file and the id.
        """
        for file in self.files:
            low, high = _token_range(file)
            if low < 0 or high >= vocab_size:
                raise ValueError(
                    f"{file} holds token id {high if low >= 0 else low}, the model's vocabulary has"
                    f" {vocab_size}: replay with a model that has the recording's tokenizer"
                )

    def begin_read(self, position: int, *, timeout_s: float) -> PendingStep:
        """Begin to read the step at `position` of `files`."""
        return PendingStep(self.files[position], timeout_s=timeout_s)


def steps_in(run_dir: Path) -> list[Path]:
    """List the files of a run's recorded steps, in order."""
    named = (path for path in (run_dir / ROLLOUTS).glob("*") if NAME.fullmatch(path.name))
    return sorted(named, key=step_number)


def discard_after(run_dir: Path, step: int) -> None:
    """Remove the records of the steps after `step`, which a resumed run does again."""
    of_failed = (run_dir / ROLLOUTS / FAILED).glob("step_*.parquet")
    for file in [*steps_in(run_dir), *of_failed]:
        if step_number(file) > step:
            file.unlink()


def step_number(file: Path) -> int:
    """Return the number of the step that a file of `steps_in` holds."""
    return int(file.stem.removeprefix("step_"))


def check_footer(file: Path) -> None:
    """Refuse a file that is cut off, or of another schema.

    Raises:
        ValueError: names the file and the remedy.
    """
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{file} is cut off or not Parquet ({str(error).splitlines()[0]}); remove it to replay "
            "the steps before it, or restore it"
        ) from error
    written = int((schema.metadata or {}).get(VERSION_KEY, b"1"))
    if written != SCHEMA_VERSION:
        raise ValueError(
            f"{file} was recorded with schema {written}, this version reads {SCHEMA_VERSION}; "
            "record the run again"
        )
    for field in SCHEMA:
        if field.name not in schema.names:
            raise ValueError(
                f"{file} has no column {field.name!r}: it was not recorded in this version's "
                "schema (workers/data/trajectory.py); record the run again"
            )
        found = schema.field(field.name).type
        if found != field.type:
            raise ValueError(
                f"{file}: column {field.name!r} is {found}, this version's schema "
                f"(workers/data/trajectory.py) has {field.type}; record the run again"
            )


def _token_range(file: Path) -> tuple[int, int]:
    """Return the smallest and largest token id, from the footer's statistics if it has them."""
    footer = pq.ParquetFile(file).metadata
    found = list(_token_statistics(footer))
    if not found or any(one is None or not one.has_min_max for one in found):
        tokens = pq.read_table(file, columns=["tokens"])["tokens"]
        bounds = pc.min_max(pc.list_flatten(tokens)).as_py()
        return bounds["min"] or 0, bounds["max"] or 0
    return min(one.min for one in found), max(one.max for one in found)


def _token_statistics(footer: Any) -> Iterator[Any]:
    for group in range(footer.num_row_groups):
        for column in range(footer.num_columns):
            chunk = footer.row_group(group).column(column)
            if chunk.path_in_schema.split(".")[0] == "tokens":
                yield chunk.statistics


_read = ray.remote(num_cpus=0, max_retries=1, num_returns=2)(load_step)


class PendingStep:
    """A step that is being read.

    Args:
        file: of the step.
        timeout_s: longest that reading may take.
    """

    def __init__(self, file: Path, *, timeout_s: float) -> None:
        answer, self._batch = _read.remote(str(file))
        self._pending = Pending("replay", f"read {file.name}", [answer], timeout_s)

    def groups(self) -> list[RolloutGroup]:
        """Wait until the step is in the object store; return its groups in recorded order."""
        return split_groups(self._pending.result()[0], self._batch)
