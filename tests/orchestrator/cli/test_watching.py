"""`ballast watch`: the display of a run that another process drives."""

import io
import json

import pytest
from rich.console import Console

from orchestrator.checkpoints.owner_file import NAME as OWNER
from orchestrator.cli.parser import main
from orchestrator.cli.watching import MetricsTail, watch
from orchestrator.telemetry.display.activity import Activity
from orchestrator.telemetry.display.progress import Progress


def line(step, reward):
    return json.dumps({"step": step, "reward/mean": reward, "time/step_s": 1.0}) + "\n"


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.yaml").write_text("run_name: tiny\ntrainer: {total_steps: 3}\n")
    (folder / "metrics.jsonl").write_text('{"step": 0, "eval/mean": 0.25}\n' + line(1, 0.5))
    return folder


def test_a_running_run_is_shown_until_its_last_step(run_dir, capsys):
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    (run_dir / OWNER).write_text("{}")
    Activity(run_dir).begin("step 2 of 3")
    later = [line(2, 0.75), line(3, 1.0)]

    def sleep(_seconds):
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write(later.pop(0))
        if not later:
            (run_dir / OWNER).unlink()

    state = watch(
        run_dir, make_progress=lambda total: Progress(total, console=console), sleep=sleep
    )
    assert state == "finished"
    text = console.file.getvalue()
    for shown in ("held-out at step 0: mean 0.250", "step 3 of 3", "0.750", "1.000"):
        assert shown in text
    assert "tiny: finished after step 3 of 3" in capsys.readouterr().out


def test_in_a_pipe_a_run_that_has_ended_is_one_line_per_step(run_dir, capsys):
    assert main(["watch", str(run_dir)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "held-out at step 0: mean 0.250"
    assert shown[1].startswith("step 1/3  reward 0.500")
    assert shown[2] == "tiny: ended early after step 1 of 3"


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["watch", str(tmp_path)]) == 2
    assert "is not a run's folder" in capsys.readouterr().err


def test_only_whole_new_lines_are_read_also_after_a_resume_cut_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert list(tail.lines()) == []
    path.write_text(line(1, 0.0) + line(2, 0.0)[:9])
    assert [found["step"] for found in tail.lines()] == [1]
    path.write_text(line(1, 0.0) + line(2, 0.0))
    assert [found["step"] for found in tail.lines()] == [2]
    path.write_text(line(1, 0.0))
    assert list(tail.lines()) == []
    path.write_text(line(1, 0.0) + "damaged\n" + line(2, 0.5))
    assert [found["step"] for found in tail.lines()] == [2]
