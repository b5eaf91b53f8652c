"""Write finished trajectories to disk and read them back, in Ray tasks beside a run.

The driver starts these functions as tasks (`orchestrator/supply/group_files.py`, `recording.py`,
`orchestrator/checkpoints/recorder.py`) and receives metadata and places only, never tokens. Every
file is written beside its name and renamed. The functions do not choose the rows to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workers.data.durable_files import FileRecord, write_file
from workers.data.plans import Slice, join_computed, step_table
from workers.data.trajectory import (
    SCHEMA,
    TrajectoryMeta,
    describe,
    from_record_batch,
    prompt_of,
)


def write_groups(path: str, slices: Sequence[Slice], *batches: pa.RecordBatch) -> FileRecord:
    """Write the rows that `slices` name to one Arrow file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as file:
        file.write_table(_one_table(slices, batches))
    return write_file(Path(path), [sink.getvalue()])


def _one_table(slices: Sequence[Slice], batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """Return the rows as a table with one dictionary of the images' files; each batch has its own.

    An Arrow file can't hold several, and a Parquet file would hold the bytes once per row.
    """
    return step_table(slices, batches).unify_dictionaries()


def load_groups(path: str) -> tuple[list[TrajectoryMeta], pa.RecordBatch]:
    """Read a file of `write_groups`: the metadata of every row, and the rows."""
    with pa.OSFile(path) as source:
        table = pa.ipc.open_file(source).read_all()
    batch = whole_batch(table)
    return [describe(trajectory) for trajectory in from_record_batch(batch)], batch


def write_step(
    path: str, slices: Sequence[Slice], num_computed: int, *batches: pa.RecordBatch
) -> int:
    """Write one step to Parquet and return its number of rows.

    The first `num_computed` batches hold computed columns (`advantages`, ...), the others the
    trajectories that `slices` count.
    """
    table = _one_table(slices, batches[num_computed:])
    table = join_computed(table, batches[:num_computed])
    draft = Path(path).with_suffix(".partial")
    pq.write_table(table, draft, compression="zstd")
    draft.rename(path)
    return int(table.num_rows)


def load_step(path: str) -> tuple[list[TrajectoryMeta], pa.RecordBatch]:
    """Read the trajectories of a file of `write_step`, without the computed columns."""
    batch = whole_batch(pq.read_table(path, columns=SCHEMA.names).cast(SCHEMA))
    return describe_rows(batch), batch


def copy_batch(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, None]:
    """Return a batch, which then lies on the node of this task, and an empty answer to wait for."""
    return batch, None


def whole_batch(table: pa.Table) -> pa.RecordBatch:
    """Return all rows of a table as one record batch.

    Raises:
        ValueError: when a column holds more than one batch can address (2^31 reward parts), which
            Arrow would otherwise cut without a word.
    """
    batches = table.combine_chunks().to_batches()
    if len(batches) > 1:
        raise ValueError(
            f"{table.num_rows} rows hold more than one record batch can address; lower "
            "trainer.prompts_per_step or rollout.samples_per_prompt"
        )
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def describe_rows(batch: pa.RecordBatch) -> list[TrajectoryMeta]:
    """Return the result of `trajectory.describe` for every row, without an object per token."""
    lengths = _lengths(batch["tokens"])
    ends = np.cumsum(lengths)
    mask = batch["loss_mask"].flatten().to_numpy(zero_copy_only=False)
    versions = batch["weight_versions"].flatten().to_numpy()
    tokens = batch["tokens"].flatten().to_numpy()
    plain = batch.drop_columns(
        [
            "tokens",
            "loss_mask",
            "rollout_logprobs",
            "weight_versions",
            "reward_notes",
            "response_text",
            "image_files",
            "turns",
        ]
    )
    metas = []
    for row, length, end in zip(plain.to_pylist(), lengths, ends, strict=True):
        place = slice(end - length, end)
        drawn = versions[place][versions[place] >= 0]
        images = [(span["offset"], span["digest"]) for span in row["images"]]
        num_prompt, prompt_crc = prompt_of(tokens[place], versions[place], images)
        timings = dict(row["timings"])
        metas.append(
            TrajectoryMeta(
                prompt_uid=row["prompt_uid"],
                group_id=row["group_id"],
                rollout_id=row["rollout_id"],
                num_tokens=int(length),
                num_trained=int(mask[place].sum()),
                num_sampled=len(drawn),
                finish_reason=row["finish_reason"],
                outcome=row["outcome"],
                reward=row["reward"],
                reward_parts=dict(row["reward_parts"]),
                min_version=int(drawn.min()) if len(drawn) else -1,
                max_version=int(drawn.max()) if len(drawn) else -1,
                generate_s=float(timings.get("generate", 0.0)),
                reward_s=float(timings.get("reward", 0.0)),
                num_prompt=num_prompt,
                prompt_crc=prompt_crc,
                num_turns=row["num_turns"],
                branch=row["branch"],
            )
        )
    return metas


def _lengths(column: pa.ListArray) -> Any:
    return pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
