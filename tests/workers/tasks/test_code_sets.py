"""Rows of APPS and TACO become prompts whose tests `reward=python` reads."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.compose import compose
from orchestrator.planning.sources import prompt_sets
from workers.reward.scorers.programs.row_tests import read_tests
from workers.tasks.code_sets import code_set

ADD = {
    "question": "Add two numbers.",
    "input_output": json.dumps({"inputs": ["2 3\n", "1 1\n"], "outputs": ["5\n", "2\n"]}),
    "starter_code": "",
    "difficulty": "introductory",
}
TWICE = {
    "question": "Double a number.",
    "input_output": json.dumps({"fn_name": "twice", "inputs": [[2]], "outputs": [[4]]}),
    "starter_code": "def twice(x):",
    "difficulty": "interview",
}
WITHOUT = {**ADD, "question": "No tests.", "input_output": ""}


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "apps"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([ADD, TWICE, WITHOUT]), folder / "train.parquet")
    rows = [{**ADD, "question": "Multiply."}, ADD]
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet")
    return folder


def test_problems_with_tests_are_prompts_and_those_held_out_leave_the_rest(copy):
    tables = code_set(copy, dataset="apps")
    (row,) = tables.train.to_pylist()  # "Add" is held out, "No tests" has none
    assert row["prompt"][0]["content"] == (
        "Double a number.\n\nComplete this code:\n```python\ndef twice(x):\n```\n"
        "Put the whole program into one ```python block."
    )
    assert read_tests(row["ground_truth"]).expressions == ("twice(2)",)
    assert tables.heldout["dataset"].to_pylist() == ["apps", "apps"]


def test_tests_and_difficulties_are_chosen(copy):
    tables = code_set(copy, heldout_split=None, num_heldout=1, max_tests=1)
    both = tables.train.to_pylist() + tables.heldout.to_pylist()
    assert sorted(len(json.loads(row["ground_truth"])["inputs"]) for row in both) == [1, 1]
    with pytest.raises(ValueError, match="holds 1 different questions, of which num_heldout=1"):
        code_set(copy, heldout_split=None, num_heldout=1, difficulties=["interview"])


def test_the_data_group_reads_the_copy(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("BALLAST_DATA", str(copy.parent))
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    lengths = ["rollout.max_model_len=4096", "learner.token_budget=4096"]
    _, config = compose(["experiment=tiny", "data=apps", "reward=python", *lengths])
    train, heldout = prompt_sets(config.data)
    assert (len(train), len(heldout)) == (1, 2)
