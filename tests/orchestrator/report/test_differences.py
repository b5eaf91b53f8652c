"""Runs differ by keys; names that always differ are no difference."""

from recorded_run import write_run

from orchestrator.report.differences import differences, flat
from orchestrator.report.run_record import read_run


def test_groups_are_flattened_and_an_empty_one_stays():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_two_runs_differ_in_what_was_chosen_and_in_nothing_else(run_dir, tmp_path):
    other = write_run(tmp_path / "other", "algorithm.policy_loss.clip_high=0.3")
    records = [read_run(run_dir), read_run(other)]
    found = {row["key"]: row["values"] for row in differences(records)}
    assert found.pop("manifest.model")  # a folder each
    found.pop("manifest.tokenizer_sha256", None)
    assert found == {"algorithm.policy_loss.clip_high": ["0.2", "0.3"]}


def test_a_key_that_one_run_lacks_is_none(run_dir, tmp_path):
    other = write_run(tmp_path / "other", "+algorithm.policy_loss.dual_clip=3.0")
    rows = differences([read_run(run_dir), read_run(other)])
    assert ["algorithm.policy_loss.dual_clip", [None, "3.0"]] in [
        [row["key"], row["values"]] for row in rows
    ]
