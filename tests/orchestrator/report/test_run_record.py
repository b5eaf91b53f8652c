"""A run's folder is read as it stands; what is missing or damaged is named and hides nothing."""

import os
import shutil
import time

import pytest
from recorded_run import write_run

from orchestrator.report.run_record import read_run
from workers.data.trajectory import SCHEMA_VERSION


@pytest.fixture
def copy(run_dir, tmp_path):
    return shutil.copytree(run_dir, tmp_path / "copy")


def test_a_whole_run_has_steps_evaluations_rollouts_and_no_problem(run_dir):
    record = read_run(run_dir)
    assert [line["step"] for line in record.steps] == [1, 2, 3, 4]
    assert [(line["step"], line["eval/mean"]) for line in record.evaluations] == [(0, 0), (4, 1)]
    assert list(record.rollouts) == [1, 2, 3, 4]
    assert record.resumed_after == [2]
    assert (record.state, record.problems) == ("finished", [])
    assert record.setting("algorithm.name") == "cpgd"
    assert record.setting("algorithm.name.deeper") is None


def test_a_half_written_run_is_read_as_far_as_it_goes(copy):
    (copy / "manifest.json").write_text('{"model": "/mod')
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    rollouts = copy / "rollouts"
    (rollouts / "step_000004.parquet").write_bytes(b"PAR1 cut off")
    (rollouts / "step_000005.partial").write_bytes(b"half")
    record = read_run(copy)
    assert [line["step"] for line in record.steps] == [1, 2, 3, 4]
    assert list(record.rollouts) == [1, 2, 3]
    told = "\n".join(record.problems)
    assert "manifest.json is half written or damaged" in told
    assert "metrics.jsonl has 1 half-written or damaged lines" in told
    assert "step_000004.parquet is cut off or not Parquet" in told


def test_a_running_run_is_called_running_while_its_owner_file_is_fresh(copy):
    (copy / "owner.json").write_text("{}")
    assert read_run(copy).state == "running"
    an_hour_ago = time.time() - 3600
    os.utime(copy / "owner.json", (an_hour_ago, an_hour_ago))
    assert read_run(copy).state == "finished"


def test_a_failed_run_is_named_with_the_error_that_ended_it(tmp_path):
    run = write_run(tmp_path / "short", steps=2)
    shutil.copy(run / "config.yaml", run / "config.old")
    text = (run / "config.old").read_text().replace("total_steps: 2", "total_steps: 9")
    (run / "config.yaml").write_text(text)
    assert read_run(run).state == "ended early"
    (run / "failure.log").write_text(
        "2026-01-01\nTraceback (most recent call last):\n  File 'x'\n"
        "a.b.WorkerError: learner.train, rank 1: no memory\nits traceback is here\n"
    )
    record = read_run(run)
    assert record.state == "failed"
    assert record.problems == [
        "what ended the run: a.b.WorkerError: learner.train, rank 1: no memory"
    ]


def test_rollouts_of_another_schema_are_left_out_with_one_sentence(copy):
    import pyarrow.parquet as pq

    for file in (copy / "rollouts").glob("*.parquet"):
        table = pq.read_table(file)
        other = {**table.schema.metadata, b"ballast.schema_version": b"99"}
        pq.write_table(table.replace_schema_metadata(other), file)
    record = read_run(copy)
    assert record.rollouts == {}
    (told,) = record.problems
    assert f"was recorded with schema 99, this version reads {SCHEMA_VERSION}" in told
    assert "(and 3 more files like it)" in told


def test_a_folder_that_is_no_run_is_refused_with_the_remedy(tmp_path, run_dir):
    with pytest.raises(ValueError, match="nowhere is not a folder; name the folder of a run"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a run's folder: it has none of config.yaml"):
        read_run(tmp_path)
    shutil.copytree(run_dir, tmp_path / "runs" / "a")
    shutil.copytree(run_dir, tmp_path / "runs" / "b")
    with pytest.raises(ValueError, match=r"holds 2 runs .* name one or several of them: .*/a .*/b"):
        read_run(tmp_path / "runs")


def test_a_run_that_only_began_is_read(tmp_path):
    (tmp_path / "config.yaml").write_text("trainer: {total_steps: 5}\n")
    record = read_run(tmp_path)
    assert record.state == "ended early"
    assert (record.steps, record.rollouts) == ([], {})
    assert record.problems == ["manifest.json is missing"]
