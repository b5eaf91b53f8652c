"""The table of runs: what a row counts, and which folders it takes."""

import csv
import io

import pytest
from recorded_run import write_run

from orchestrator.comparison.overview import as_csv, row, runs_in, table
from orchestrator.report.run_record import read_run


@pytest.fixture
def folder(tmp_path):
    for name in ("b", "a"):
        write_run(tmp_path / "runs" / name)
    return tmp_path / "runs"


def test_a_row_has_the_result_the_cost_and_the_samples_to_the_goal(folder):
    found = row(read_run(folder / "a"), goal=0.5)
    assert found == {
        "run": "a",
        "algorithm": "cpgd",
        "state": "finished",
        "steps": 4,
        "reward": 0.25,  # (.1 + .2 + .3 + .4) / 4
        "held-out": 1.0,
        "best": 1.0,
        "best at step": 4,
        "samples to goal": 32.0,  # the evaluation after step 4, 8 samples a step
        "samples": 32.0,
        "tokens": 400.0,
        "seconds": 8.0,
    }
    assert row(read_run(folder / "a"), goal=2.0)["samples to goal"] is None
    assert "samples to goal" not in row(read_run(folder / "a"), goal=None)


def test_a_run_without_two_evaluations_reaches_the_goal_by_its_reward(folder):
    path = folder / "a" / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if "eval/mean" not in line]
    path.write_text("\n".join(lines) + "\n")
    found = row(read_run(folder / "a"), goal=0.2)
    assert (found["samples to goal"], found["held-out"], found["best"]) == (16.0, None, 0.4)


def test_a_folder_of_runs_stands_for_its_runs_by_name(folder):
    assert [run.name for run in runs_in([folder / "b", folder])] == ["b", "a"]
    with pytest.raises(ValueError, match="is no run and holds none; name run folders"):
        runs_in([folder / "missing"])


def test_text_is_aligned_and_csv_has_every_number():
    rows = [
        {"run": "a", "tokens": 12345.678, "best": None},
        {"run": "bb", "tokens": 0.5, "best": 1},
    ]
    assert table(rows).splitlines() == [
        "run  tokens  best",
        "a    12,346     -",
        "bb      0.5     1",
    ]
    read = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert read[0] == {"run": "a", "tokens": "12345.678", "best": ""}
