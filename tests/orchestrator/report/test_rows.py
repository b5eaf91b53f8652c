"""Numbers of the tokens, by hand; and the budgets that bound the reading of a long run."""

import numpy as np
import pyarrow as pa
import pytest
from recorded_run import sample, write_rollouts

from orchestrator.report.rows import outcome_kind, read_rows, token_facts, within


def read(folder, **budgets):
    files = {int(f.stem[5:]): f for f in sorted((folder / "rollouts").glob("*.parquet"))}
    return read_rows(files, **budgets)


def test_numbers_of_a_step(tmp_path):
    rows = [sample("a", 0, (1, 2, 3), 1.0), sample("a", 1, (1,), 0.0)]
    write_rollouts(tmp_path, 7, rows, ratio=1.25, gap=0.5)
    (step,) = read(tmp_path)
    assert (step.step, len(step)) == (7, 2)
    assert step.small["reward"] == [1.0, 0.0]
    assert step.facts["sampled"].tolist() == [3, 1]
    assert step.facts["advantage"] == pytest.approx([0.5, 0.5])  # |1 - 1/2| and |0 - 1/2|
    assert step.facts["gap"] == pytest.approx([0.5, 0.5])
    assert step.facts["ratio"] == pytest.approx([0.25, 0.25])


def test_shares_of_trained_tokens_that_were_cut(tmp_path):
    """Bits 1 clipped, 2 gated, 4 dropped; the prompt's two tokens count for nothing."""
    rows = [sample("a", 0, (1, 2, 3, 4), 1.0), sample("a", 1, (1,), 0.0)]
    write_rollouts(tmp_path, 7, rows, flags=[0, 0, 1, 3, 0, 4, 0, 0, 2])
    (step,) = read(tmp_path)
    assert step.facts["clipped"].tolist() == [0.5, 0.0]
    assert step.facts["gated"].tolist() == [0.25, 1.0]
    assert step.facts["dropped"].tolist() == [0.25, 0.0]


def test_outcomes_of_one_kind_are_one_whatever_sample_they_name():
    assert outcome_kind("failed:train:7: 300 tokens, at most 64", "train:7") == (
        "failed:# tokens, at most #"
    )
    assert outcome_kind("failed:train:8: 411 tokens, at most 64", "train:8") == (
        "failed:# tokens, at most #"
    )
    assert len(outcome_kind("failed:" + "x" * 300, "p")) == 80
    assert outcome_kind("scored", "p") == "scored"


def test_a_row_without_a_computed_column_has_no_number():
    lists = pa.large_list(pa.float32())
    table = pa.table(
        {
            "loss_mask": pa.array([[True, False], [True]], pa.large_list(pa.bool_())),
            "weight_versions": pa.array([[0, 0], [0]], pa.large_list(pa.int32())),
            "rollout_logprobs": pa.array([[-1.0, -9.0], [-1.0]], lists),
            "logprobs": pa.array([[-1.5, 0.0], None], lists),
        }
    )
    facts = token_facts(table)
    assert facts["sampled"].tolist() == [2, 1]
    assert facts["gap"][0] == 0.5  # the second token does not train
    assert np.isnan(facts["gap"][1])
    assert set(facts) == {"sampled", "gap"}


def test_steps_within_a_budget_are_spread_and_keep_both_ends():
    sizes = dict.fromkeys(range(1, 101), 10)
    chosen = within(list(sizes), sizes, 50)
    assert (len(chosen), chosen[0], chosen[-1]) == (5, 1, 100)
    assert within([1, 2], sizes, 50) == [1, 2]
    assert within([1, 2], sizes, 5) == [1]  # one is read, whatever its size
    assert within([], sizes, 5) == []


def test_beyond_the_budget_of_tokens_only_small_columns_are_read(tmp_path):
    for step in (1, 2, 3):
        write_rollouts(tmp_path, step, [sample("a", 0, (1, 2, 3), 1.0)])  # 5 tokens
    steps = read(tmp_path, max_tokens=10)
    assert [step.step for step in steps] == [1, 2, 3]
    assert [bool(step.facts) for step in steps] == [True, False, True]
    assert [step.step for step in read(tmp_path, max_rows=2)] == [1, 3]
