"""Images in the record: a file is stored once for all siblings, on the way and on disk."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workers.data.images.columns import FILE_TYPE, SPAN_TYPE, as_spans, spans_as_structs
from workers.data.images.spans import ImageSpan
from workers.data.plans import Slice
from workers.data.record_files import load_groups, load_step, write_groups, write_step
from workers.data.trajectory import SCHEMA, Trajectory, from_record_batch, to_record_batch

SPAN = ImageSpan(offset=1, length=2, grid=(1, 2, 4), digest="9f86")


def siblings(count: int, file: bytes) -> list[Trajectory]:
    return [
        Trajectory(
            run_id="run",
            begun_version=1,
            prompt_uid="train:7",
            group_id="0-7",
            rollout_id=f"0-7/{number}",
            dataset="d",
            tokens=[5, 9, 9, 6, 8],
            loss_mask=[False] * 4 + [True],
            rollout_logprobs=[0.0] * 4 + [-0.5],
            weight_versions=[-1] * 4 + [1],
            finish_reason="stop",
            outcome="scored",
            reward=float(number % 2),
            images=[SPAN],
            image_files=[file],
        )
        for number in range(count)
    ]


def stream_of(batch: pa.RecordBatch) -> int:
    """Bytes of a batch on its way between processes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return len(sink.getvalue())


def test_eight_siblings_are_hardly_larger_than_one_image() -> None:
    file = os.urandom(200_000)
    batch = to_record_batch(siblings(8, file))
    assert stream_of(batch) < 1.2 * len(file)
    assert batch.nbytes < 1.2 * len(file)  # as it lies in the object store


def test_a_step_of_several_batches_keeps_each_file_once(tmp_path) -> None:
    files = [os.urandom(50_000) for _ in range(4)]
    batches = [to_record_batch(siblings(8, file)) for file in files]
    slices = [Slice(batch=k, start=0, length=8) for k in range(4)]
    path = tmp_path / "step_000001.parquet"
    assert write_step(str(path), slices, 0, *batches) == 32
    assert path.stat().st_size < 1.2 * 4 * 50_000
    _, back = load_step(str(path))
    assert back["image_files"].to_pylist() == [[file] for file in files for _ in range(8)]


def test_images_come_back_as_they_were_written() -> None:
    first, second = os.urandom(2000), os.urandom(3000)
    rows = [*siblings(2, first), *siblings(2, second)]
    back = from_record_batch(to_record_batch(rows))
    assert [row.images for row in back] == [(SPAN,)] * 4
    assert [list(row.image_files) for row in back] == [[first]] * 2 + [[second]] * 2


def test_groups_of_several_batches_are_kept_in_one_file_each_image_once(tmp_path: Path) -> None:
    files = [os.urandom(100_000) for _ in range(3)]
    batches = [to_record_batch(siblings(8, file)) for file in files]
    slices = [Slice(batch=number, start=0, length=8) for number in range(3)]
    write_groups(str(tmp_path / "groups.arrow"), slices, *batches)
    assert (tmp_path / "groups.arrow").stat().st_size < 1.2 * 300_000
    metas, batch = load_groups(str(tmp_path / "groups.arrow"))
    assert len(metas) == 24 and batch.schema == SCHEMA
    kept = batch["image_files"].to_pylist()
    assert [kept[row] for row in (0, 8, 23)] == [[files[0]], [files[1]], [files[2]]]


def test_a_recorded_step_keeps_each_image_once_and_reads_back(tmp_path: Path) -> None:
    files = [os.urandom(100_000) for _ in range(2)]
    batches = [to_record_batch(siblings(8, file)) for file in files]
    slices = [Slice(batch=number, start=0, length=8) for number in range(2)]
    path = tmp_path / "step_00001.parquet"
    write_step(str(path), slices, 0, *batches)
    assert path.stat().st_size < 1.2 * 200_000
    metas, batch = load_step(str(path))
    assert batch.schema == SCHEMA and len(metas) == 16
    assert batch["image_files"].to_pylist()[8:] == [[files[1]]] * 8
    assert pq.read_schema(path).field("images").type == SCHEMA.field("images").type
    assert np.all([row.images == (SPAN,) for row in from_record_batch(batch)])


def test_a_row_without_images_has_empty_lists() -> None:
    (row,) = siblings(1, b"")
    bare = Trajectory(
        **{name: getattr(row, name) for name in row.__slots__ if not name.startswith("image")}
    )
    batch = to_record_batch([bare])
    assert batch["images"].to_pylist() == batch["image_files"].to_pylist() == [[]]


def test_spans_are_read_back_from_their_columns() -> None:
    column = pa.array([spans_as_structs([SPAN]), []], SPAN_TYPE)
    assert [as_spans(value) for value in column.to_pylist()] == [(SPAN,), ()]
    assert SCHEMA.field("images").type == SPAN_TYPE
    assert SCHEMA.field("image_files").type == FILE_TYPE
