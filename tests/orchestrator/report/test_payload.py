"""One record of several runs: a name each, and shares of the budgets."""

import shutil

from recorded_run import write_run

from orchestrator.report.payload import build, labels
from orchestrator.report.run_record import read_run


def test_runs_of_one_name_are_told_apart_by_their_folders(run_dir, tmp_path):
    for folder in ("monday", "tuesday"):
        shutil.copytree(run_dir, tmp_path / folder / "tiny")
    shutil.copytree(run_dir, tmp_path / "other")
    paths = [tmp_path / "monday" / "tiny", tmp_path / "tuesday" / "tiny", tmp_path / "other"]
    records = [read_run(path) for path in paths]
    assert labels(records) == ["monday/tiny", "tuesday/tiny", "other"]
    assert labels(records[:1]) == ["tiny"]
    assert labels(records[:1] * 2) == ["tiny", "tiny"]  # the same run twice
    assert [run["name"] for run in build(records)["runs"]] == labels(records)


def test_what_a_report_holds_and_leaves_out_is_told(run_dir):
    (run,) = build([read_run(run_dir)])["runs"]
    assert run["rollouts"]["note"] == "32 of 32 recorded samples are shown"
    (less,) = build([read_run(run_dir)], max_bytes=3_000, max_tokens=60)["runs"]
    held = sum(len(group["samples"]) for group in less["rollouts"]["groups"])
    assert 0 < held < 32
    note = less["rollouts"]["note"]
    assert note.startswith(f"{held} of 32 recorded samples are shown: every kind of failure")
    assert note.endswith("steps the tokens not read")
    assert run["verdict"] == less["verdict"]


def test_the_marks_of_tokens_are_those_that_the_algorithm_can_make(tmp_path):
    def marks(name, *overrides):
        record = read_run(write_run(tmp_path / name, *overrides, steps=1, resumed_after=()))
        (run,) = build([record])["runs"]
        return {name: (cut["flag"], cut["words"]) for name, cut in run["rollouts"]["cuts"].items()}

    assert marks("plain", "algorithm=grpo") == {"clipped": (1, "clipped")}
    assert marks(
        "gated", "algorithm=grpo", "algorithm/gate=erc", "algorithm/correction=icepop"
    ) == {
        "clipped": (1, "clipped"),
        "gated": (2, "gated by ERC"),
        "dropped": (4, "dropped by the correction"),
    }
