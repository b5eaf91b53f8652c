"""Rows by number from every format; memory does not grow with the file."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.data.sources.rows import JsonRows, ParquetRows, open_rows

ROWS = [
    {"q": "2+3=", "a": "5", "more": {"style": "rule", "gold": ["5", "five"]}},
    {"q": "4+1=", "a": "5", "more": {"style": "rule", "gold": ["5"]}},
    {"q": "1+1=", "a": "2", "more": None},
]


def as_parquet(folder):
    pq.write_table(pa.Table.from_pylist(ROWS[:2]), folder / "a.parquet", row_group_size=1)
    schema = pa.Table.from_pylist(ROWS[:2]).schema
    pq.write_table(pa.Table.from_pylist(ROWS[2:], schema), folder / "b.parquet")
    return folder


def as_jsonl(folder):
    text = "\n".join(json.dumps(row) for row in ROWS[:2])
    (folder / "a.jsonl").write_text(f"{text}\n\n")
    (folder / "b.jsonl").write_text(json.dumps(ROWS[2]))  # no line break at the end
    return folder


def as_arrow(folder):
    table = pa.Table.from_pylist(ROWS)
    for number, rows in enumerate((table.slice(0, 2), table.slice(2))):
        with pa.ipc.new_stream(folder / f"data-{number:05d}-of-00002.arrow", table.schema) as file:
            file.write_table(rows)
    names = [{"filename": f"data-{number:05d}-of-00002.arrow"} for number in (0, 1)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names}))
    (folder / "cache-1f2e.arrow").write_bytes(b"left by a map of these rows")
    return folder


def as_json_list(folder):
    (folder / "all.json").write_text(json.dumps(ROWS, indent=1))
    return folder / "all.json"


@pytest.mark.parametrize("write", [as_parquet, as_jsonl, as_arrow, as_json_list])
def test_every_format_gives_the_same_rows_in_any_order(tmp_path, write):
    rows = open_rows(write(tmp_path))
    assert len(rows) == 3
    assert [rows[number] for number in (2, 0, 1, 0)] == [ROWS[2], ROWS[0], ROWS[1], ROWS[0]]
    assert rows.kinds == {
        "q": "value",
        "a": "value",
        "more": "record",
        "more.style": "value",
        "more.gold": "list",
    }


def test_a_dataset_of_several_splits_is_refused_with_their_names(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match=r"several splits; name one of them: test, train"):
        open_rows(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"q": 1}\n{"q": 2', r"line 2 of .*train.jsonl is no JSON"),
        ('{"q": 1}\n[2]\n', r"line 2 of .*train.jsonl is no JSON object, but list: \[2\]"),
        ('[{"q": 1}, 2]', r"element 1 of .*train.jsonl is no JSON object, but int: 2"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_when_the_file_is_opened(tmp_path, text, message):
    (tmp_path / "train.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_rows(tmp_path / "train.jsonl")


def test_a_folder_without_prompts_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match="holds no .parquet, .jsonl or .arrow file"):
        open_rows(tmp_path)


def test_memory_is_that_of_a_few_row_groups_however_large_the_file(tmp_path):
    group = pa.table({"text": [f"{number:07d}" * 150 for number in range(1000)]})  # 1 MB
    path = tmp_path / "large.parquet"
    with pq.ParquetWriter(path, group.schema, compression="zstd") as writer:
        for _ in range(40):
            writer.write_table(group)
    rows = ParquetRows([path], cache_bytes=4 * 2**20)
    before, most = pa.total_allocated_bytes(), 0
    for row in range(0, len(rows), 500):
        assert rows[row]["text"].startswith(f"{row % 1000:07d}")
        most = max(most, pa.total_allocated_bytes() - before)
    assert len(rows) == 40_000
    assert most < 12 * 2**20  # of 42 MB


def test_a_json_line_costs_its_place_in_the_file_only(tmp_path):
    path = tmp_path / "large.jsonl"
    path.write_text("".join(f'{{"text": "{number:07d}"}}\n' for number in range(5000)))
    rows = JsonRows([path])
    assert rows[4321] == {"text": "0004321"}
    assert rows._starts.itemsize + rows._file_of.itemsize <= 16  # bytes a row
