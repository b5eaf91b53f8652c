"""The file of metrics: one line per step, flushed, cut where a resumed run goes on."""

import json
from dataclasses import replace

import pytest

from conf.compose import compose
from conf.schema import TrackingConfig
from orchestrator.telemetry.display.progress import Progress
from orchestrator.telemetry.run_log import RunLog
from orchestrator.telemetry.tracking import Tracker, truncate_metrics

PLAIN = TrackingConfig(tensorboard=False, wandb=False)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_is_on_disk_before_the_next_step(tmp_path):
    tracker = Tracker(tmp_path, PLAIN, run_name="run")
    tracker.log(1, {"reward/mean": 0.5, "a/b": 1.0})
    assert lines(tmp_path) == [{"step": 1, "a/b": 1.0, "reward/mean": 0.5}]
    tracker.log(2, {"reward/mean": 0.75})
    tracker.close()
    again = Tracker(tmp_path, PLAIN, run_name="run")
    again.log(3, {})
    again.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_every_sink_is_closed_where_the_run_fails(tmp_path):
    config = replace(compose(["experiment=tiny"])[1], tracking=PLAIN)
    log = RunLog(tmp_path, config, Progress(3))

    def run():
        with log:
            log.step(1, {"reward/mean": 0.5})
            raise KeyError("step 2")

    with pytest.raises(KeyError):
        run()
    with pytest.raises(ValueError, match="closed file"):
        log.step(2, {})
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_what_a_resumed_run_computes_again_is_dropped(tmp_path):
    """Steps 3 and on, and the half line of a driver that was killed while it wrote."""
    text = '{"step": 1}\n{"step": 2}\n{"step": 2, "eval/mean": 1.0}\n{"step": 3}\n{"step": 2, "re'
    (tmp_path / "metrics.jsonl").write_text(text)
    truncate_metrics(tmp_path, 2)
    assert lines(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 2, "eval/mean": 1.0}]
    truncate_metrics(tmp_path / "nothing here", 2)
