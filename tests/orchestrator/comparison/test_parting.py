"""Where two records part: the first step, the first column computed, its first value."""

import json

import pytest
from recorded_run import sample, write_rollouts, write_run

from orchestrator.comparison.parting import (
    common_steps,
    differing_columns,
    is_reproducible,
    metrics_part,
    rollouts_part,
)
from orchestrator.report.run_record import read_run


def rows(reward=1.0, logprob=-0.5):
    changed = sample("a", 0, (1, 2), reward, rollout_logprobs=[0.0, 0.0, -0.5, logprob])
    return [changed, sample("a", 1, (3,), 0.0)]


def file(folder, step=1):
    return folder / "rollouts" / f"step_{step:06d}.parquet"


@pytest.fixture
def pair(tmp_path):
    return [read_run(write_run(tmp_path / name)) for name in ("left", "right")]


def test_equal_files_have_no_difference_though_their_runs_and_times_differ(tmp_path):
    for name in ("left", "right"):
        named = [sample("a", 0, (1,), 1.0, run_id=name, timings={"generate": len(name) / 10})]
        write_rollouts(tmp_path / name, 1, named)
    assert differing_columns(file(tmp_path / "left"), file(tmp_path / "right")) == []


def test_columns_come_in_the_order_in_which_a_step_computes_them(tmp_path):
    write_rollouts(tmp_path / "left", 1, rows())
    write_rollouts(tmp_path / "right", 1, rows(reward=0.0, logprob=-0.25))
    found = differing_columns(file(tmp_path / "left"), file(tmp_path / "right"))
    assert found[0] == (
        "rollout_logprobs differs in 1 of 2 rows; first in row 0, token 3: -0.5 | -0.25"
    )
    assert found[1] == "reward differs in 1 of 2 rows; first in row 0: 1.0 | 0.0"
    names = [one.split()[0] for one in found]
    assert names[2:] == ["reward_parts", "old_logprobs", "advantages", "logprobs"]


def test_another_number_of_rows_is_told_first(tmp_path):
    write_rollouts(tmp_path / "left", 1, rows())
    write_rollouts(tmp_path / "right", 1, rows()[:1])
    assert differing_columns(file(tmp_path / "left"), file(tmp_path / "right")) == [
        "2 rows | 1 rows"
    ]


def test_nan_is_equal_to_nan(tmp_path):
    for name in ("left", "right"):
        write_rollouts(tmp_path / name, 1, rows(logprob=float("nan")))
    assert differing_columns(file(tmp_path / "left"), file(tmp_path / "right")) == []


def test_the_first_step_that_differs_is_found(pair):
    left, right = pair
    assert rollouts_part(left, right) is None
    write_rollouts(right.folder, 3, rows())
    parting = rollouts_part(left, read_run(right.folder))
    assert (parting.step, parting.found[0]) == (3, "8 rows | 2 rows")


def test_metrics_of_the_clock_are_no_difference_and_others_are(pair):
    left, right = pair
    path = right.folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["step"] == 2:
            line |= {"time/step_s": 9.0, "bubble/learner/idle_frac": 0.5, "rollout/engines_lost": 7}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert metrics_part(left, read_run(right.folder)) is None
    lines[2]["policy/entropy"] = 0.125
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    parting = metrics_part(left, read_run(right.folder))
    assert parting.step == lines[2]["step"]
    assert parting.found[0].startswith("policy/entropy: ")
    assert parting.found[0].endswith(" | 0.125")


def test_steps_are_common_as_far_as_both_go(tmp_path, pair):
    short = read_run(write_run(tmp_path / "short", steps=2))
    assert common_steps(pair[0], short) == [1, 2]
    assert is_reproducible("learner/loss")
    assert not is_reproducible("rollout/tokens_per_s")
