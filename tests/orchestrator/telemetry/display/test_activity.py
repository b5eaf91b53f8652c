"""The present activity of a run: in its file, on its display, in words."""

from pathlib import Path

import pytest

from orchestrator.telemetry.clock import Clock
from orchestrator.telemetry.display.activity import FILE, Activity, Moment, read_moment


def test_another_process_reads_the_step_and_what_it_waits_for(tmp_path):
    activity = Activity(tmp_path)
    activity.begin("step 5 of 16")
    with Clock(begin=activity.wait).span("generate"):
        seen = read_moment(tmp_path)
        assert (seen.doing, seen.waits_for) == ("step 5 of 16", "samples and their rewards")
        assert seen.text(seen.since_s + 12.4) == (
            "step 5 of 16, waits for samples and their rewards, 12 s"
        )
    assert read_moment(tmp_path).waits_for == ""
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_every_change_is_shown():
    shown = []
    activity = Activity(show=shown.append)
    activity.begin("the checkpoint of step 3")
    activity.wait("publish")
    assert [(moment.doing, moment.waits_for) for moment in shown] == [
        ("the checkpoint of step 3", ""),
        ("the checkpoint of step 3", "the new weights in the engines, and their proof"),
    ]


def test_a_folder_that_cannot_be_written_stops_nothing():
    activity = Activity(Path("/nonexistent/run"))
    activity.begin("step 1 of 2")
    assert activity.doing == "step 1 of 2"


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"doing": "x", "more": 1}'])
def test_a_missing_or_half_written_file_says_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / FILE).write_text(text)
    assert read_moment(tmp_path) is None


def test_a_clock_that_runs_back_shows_no_negative_time():
    assert Moment(doing="step 1 of 2", since_s=100.0).text(90.0) == "step 1 of 2, 0 s"
