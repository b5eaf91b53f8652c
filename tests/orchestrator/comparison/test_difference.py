"""What `ballast diff` says of two runs, and what it calls equal."""

import shutil

import pytest
from recorded_run import sample, write_rollouts, write_run

from orchestrator.comparison.difference import compare_two
from orchestrator.report.run_record import read_run


def read(folder, name, *overrides, **changes):
    return read_run(write_run(folder / name, *overrides, **changes))


def test_equal_records_are_called_equal_though_a_setting_differs(tmp_path):
    found = compare_two(read(tmp_path, "a"), read(tmp_path, "b", "resume=auto"))
    assert found.equal
    assert "settings, versions and data: 1 difference\n  resume  never | auto" in found.text
    assert "rollouts are equal to the bit in steps 1 to 4" in found.text
    assert found.text.endswith("the runs are equal to the bit, in 4 steps")


def test_a_difference_names_its_step_and_the_last_values(tmp_path):
    left, right = read(tmp_path, "a"), read(tmp_path, "b")
    write_rollouts(right.folder, 3, [sample("x", k, (1,), 0.0) for k in range(8)])
    found = compare_two(left, read_run(right.folder))
    assert not found.equal
    assert "settings, versions and data are equal" in found.text
    assert "rollouts: equal in steps 1 to 2, different from step 3 on" in found.text
    assert found.text.endswith("the runs part in step 3")
    (row,) = [line for line in found.text.splitlines() if line.startswith("  reward/mean")]
    assert row.split() == ["reward/mean", "0.4", "0.4", "+0"]


def test_a_shorter_run_and_one_without_rollouts_are_not_called_equal(tmp_path):
    whole, short = read(tmp_path, "a"), read(tmp_path, "b", steps=2)
    # The evaluation after the last step of each is of another step.
    (short.folder / "metrics.jsonl").write_text(
        "".join((whole.folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:2])
    )
    found = compare_two(whole, read_run(short.folder))
    assert not found.equal
    assert found.text.endswith("equal as far as both go; the runs have 4 and 2 steps")
    bare = read(tmp_path, "c")
    shutil.rmtree(bare.folder / "rollouts")
    found = compare_two(whole, read_run(bare.folder))
    assert not found.equal
    assert found.text.endswith("without recorded rollouts equal bits are not shown")


def test_a_run_without_a_step_is_refused(tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(ValueError, match="begun has no finished step"):
        compare_two(read(tmp_path, "a"), read_run(begun))
