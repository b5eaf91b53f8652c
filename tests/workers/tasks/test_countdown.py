"""Rows of Countdown are scored by reasoning-gym."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.reward.base import RewardSample, score_sample
from workers.reward.scorers.gym import ReasoningGym
from workers.tasks.countdown import build_countdown


@pytest.fixture
def row(tmp_path):
    path = tmp_path / "countdown.parquet"
    pq.write_table(pa.table({"nums": [[3, 5, 2], [1, 4, 4]], "target": [13, 17]}), path)
    folder = build_countdown(tmp_path / "out", source=str(path), num_heldout=1)
    tables = [pq.read_table(folder / name) for name in ("train.parquet", "eval.parquet")]
    rows = [each for table in tables for each in table.to_pylist()]
    return next(each for each in rows if "3, 5, 2" in each["prompt"][0]["content"])


@pytest.mark.parametrize(
    ("answer", "right"), [("5*2+3", True), ("3*5-2", True), ("5+3+5", False), ("13", False)]
)
def test_an_expression_of_the_numbers_is_right(row, answer, right):
    assert row["prompt"][0]["content"].startswith(
        "Using the numbers 3, 5, 2, write an expression that equals 13."
    )
    sample = RewardSample(
        prompt="",
        response=f"so <answer>{answer}</answer>",
        ground_truth=row["ground_truth"],
        columns={"entry": row["entry"]},
    )
    result = score_sample(ReasoningGym(answer_pattern="<answer>(.*?)</answer>"), sample)
    assert (result.reward == 1.0) is right
