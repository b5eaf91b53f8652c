"""MMK12's files, as published or as its authors' trainer reads them, become prompts."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.workers.data.images.folders import file_of, noise
from workers.data.prompts import PromptSet
from workers.tasks.figures import build_figures, figures

FILE = file_of(noise(40, 40))
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(path: Path, questions: list[str], **columns: list[str]) -> None:
    count = len(questions)
    image = pa.array([{"bytes": FILE, "path": "a.png"}] * count, STRUCT)
    rows = {"id": ["x"] * count, "question": questions, "answer": ["7"] * count, "image": image}
    pq.write_table(pa.table({**rows, **columns}), path)


def prompts_of(folder: Path) -> PromptSet:
    names = {"prompt_column": "prompt", "ground_truth_column": "ground_truth"}
    return PromptSet(folder / "train.parquet", **names, image_column="image")


def test_a_figure_stands_before_a_question_that_has_no_place_for_it(tmp_path: Path) -> None:
    parquet(tmp_path / "train-0.parquet", ["How long?", "In <image>, how long?"])
    parquet(tmp_path / "test-0.parquet", ["A or B?"])
    tables = figures(tmp_path)
    texts = sorted(row[0]["content"] for row in tables.train["prompt"].to_pylist())
    assert texts == ["<image>How long?", "In <image>, how long?"]
    assert tables.heldout["prompt"].to_pylist()[0][0]["content"] == "<image>A or B?"


def test_the_folder_holds_the_files_of_the_figures(tmp_path: Path) -> None:
    parquet(tmp_path / "train-0.parquet", [f"{number}?" for number in range(9)])
    folder = build_figures(tmp_path / "built", source=str(tmp_path), num_heldout=2)
    prompts = prompts_of(folder)
    assert len(prompts) == 7
    assert prompts[0].images == (FILE,)
    assert (prompts[0].ground_truth, prompts[0].dataset) == ("7", "mmk12")
    assert "image" not in prompts[0].columns


@pytest.mark.parametrize("key", ["message", "conversations"])
def test_json_lines_name_their_files(tmp_path: Path, key: str) -> None:
    parts = [{"type": "image", "image": "file:///a.png"}, {"type": "text", "text": "How long?"}]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]
    plain = [{"role": "user", "content": "How <image> long?"}]
    rows = [
        {"id": 1, key: json.dumps(messages), "answer": "7"},
        {"id": 2, key: plain, "answer": "8", "image_urls": ["file:///b.png"]},
        {"id": 3, key: [{"role": "user", "content": "2+3"}], "answer": 5},
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "train.jsonl").write_text(lines + "\n")
    (tmp_path / "test.jsonl").write_text(lines)
    found = {
        row["ground_truth"]: (row["prompt"][0]["content"], [one["path"] for one in row["image"]])
        for row in figures(tmp_path).train.to_pylist()
    }
    assert found == {
        "7": ("<image>How long?", ["file:///a.png"]),
        "8": ("How <image> long?", ["file:///b.png"]),
        "5": ("2+3", []),
    }


def test_other_files_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["q"], "answer": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train.parquet has no column 'image'; it has question"):
        figures(tmp_path)
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "train.jsonl").write_text('\n{"id": 1, "answer": "7"}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*train.jsonl has no user message"):
        figures(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    parquet(tmp_path / "train.parquet", ["q"])
    with pytest.raises(ValueError, match="holds 1 rows, of which num_heldout=128 can't be kept"):
        figures(tmp_path)


def test_a_row_group_of_pictures_is_small(tmp_path: Path) -> None:
    large = file_of(noise(600, 600))
    image = pa.array([{"bytes": large, "path": ""}] * 12, STRUCT)
    questions = [f"{number}?" for number in range(12)]
    parquet(tmp_path / "train.parquet", questions, image=image)  # 1.1 MB each
    folder = build_figures(tmp_path / "built", source=str(tmp_path), num_heldout=2)
    assert pq.ParquetFile(folder / "train.parquet").num_row_groups >= 3
