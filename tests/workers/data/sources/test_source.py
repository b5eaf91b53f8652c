"""Prompts of one file: columns, labels, and what is refused before a run."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.data.sources.messages import PromptFormat
from workers.data.sources.source import PromptSource

VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "2+3=?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "5"},
    "extra_info": {"split": "train", "index": 0},
}


def source(path, **names):
    return PromptSource(
        path, **{"prompt_column": "prompt", "ground_truth_column": "ground_truth"} | names
    )


def test_a_file_in_verls_layout_is_read_as_published(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist([VERL]), path)
    prompt = source(path, ground_truth_column="reward_model.ground_truth")[0]
    assert prompt.uid == "train:0"
    assert prompt.prompt == [{"role": "user", "content": "2+3=?"}]
    assert prompt.ground_truth == "5"
    assert prompt.columns == {name: value for name, value in VERL.items() if name != "prompt"}


def test_a_record_as_ground_truth_is_refused_with_its_fields(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist([VERL]), path)
    with pytest.raises(
        ValueError,
        match=r"train.parquet is a record \(data.ground_truth_column=reward_model\); name one of "
        r"its fields: reward_model.style, reward_model.ground_truth",
    ):
        source(path, ground_truth_column="reward_model")


def test_one_json_line_with_a_record_as_ground_truth_is_enough(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [{"prompt": "a", "ground_truth": "5"}, {"prompt": "b", "ground_truth": [{"gold": "5"}]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="is a list of records .*write the answer as text"):
        source(path)


def test_whole_numbers_beside_nulls_keep_their_text(tmp_path):
    path = tmp_path / "train.parquet"
    floats = pa.array([2.0, None], pa.float64())  # as pandas saves integers with a null
    pq.write_table(pa.table({"prompt": ["1+1=", "?"], "ground_truth": floats}), path)
    assert [source(path)[row].ground_truth for row in (0, 1)] == ["2", None]


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist([VERL]), path)
    with pytest.raises(
        ValueError,
        match=r"no column 'reward_model.groundtruth' \(data.ground_truth_column\); it has "
        r"data_source, prompt, .*did you mean 'reward_model.ground_truth'\?",
    ):
        source(path, ground_truth_column="reward_model.groundtruth")


def test_a_column_whose_own_name_has_a_dot_is_found(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"in.text": "1+1=", "out.text": "2"}\n')
    prompt = source(path, prompt_column="in.text", ground_truth_column="out.text")[0]
    assert (prompt.prompt, prompt.ground_truth, prompt.columns) == ("1+1=", "2", {})


def test_a_name_labels_every_row(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "1+1=", "ground_truth": ["2", "two"], "dataset": "old"}\n')
    prompt = source(path, name="sums", form=PromptFormat(as_chat=True))[0]
    assert (prompt.uid, prompt.dataset, prompt.columns) == ("sums:0", "sums", {"dataset": "sums"})
    assert prompt.ground_truth == ["2", "two"]
    assert prompt.prompt == [{"role": "user", "content": "1+1="}]
    assert source(path)[0].dataset == "old"
