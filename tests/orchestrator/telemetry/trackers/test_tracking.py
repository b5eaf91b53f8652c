"""The file of metrics, cut where a resumed run goes on, and trackers that can't hold a run up."""

import json
import threading
import time
from dataclasses import replace

import pytest

from conf.compose import compose
from conf.schema import TrackingConfig
from orchestrator.telemetry.display.progress import Progress
from orchestrator.telemetry.run_log import RunLog
from orchestrator.telemetry.trackers import tracking
from orchestrator.telemetry.trackers.tracking import Marks, Tracker, TrackerQueue, truncate_metrics

PLAIN = TrackingConfig(trackers=[])


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


class Sink:
    """Remembers what it got; `log` does what `how` does."""

    id = "run-1"

    def __init__(self, how=lambda step: None):
        self.how, self.steps, self.closed = how, [], False

    def log(self, step, metrics):
        self.how(step)
        self.steps.append(step)

    def close(self):
        self.closed = True


def tracked(folder, sink, steps, *, forgets=False, limit_s=5.0):
    """Log steps to a sink, or to what `sink()` opens; return the lines that were printed."""
    lines = []
    waiting = TrackerQueue(
        "mine",
        sink if callable(sink) else lambda known: sink,
        Marks(folder / "trackers.json"),
        print_line=lines.append,
        forgets=forgets,
    )
    for step in steps:
        waiting.put(lambda sink, step=step: sink.log(step, {}), step)
    waiting.end()
    waiting.join(limit_s)
    return lines


def test_a_tracker_gets_everything_in_its_own_thread(tmp_path):
    sink = Sink(lambda step: threads.append(threading.current_thread().name))
    threads = []
    assert tracked(tmp_path, sink, [1, 2]) == []
    assert (sink.steps, sink.closed, set(threads)) == ([1, 2], True, {"tracker mine"})


def test_a_resumed_run_goes_on_in_the_same_tracked_run_without_steps_twice(tmp_path):
    known = []

    def reopened(run_id):
        known.append(run_id)
        return again

    tracked(tmp_path, Sink(), [1, 2, 3, 4, 5, 6])
    again = Sink()
    tracked(tmp_path, reopened, [5, 6, 7])
    assert (known, again.steps) == (["run-1"], [7])
    assert json.loads((tmp_path / "trackers.json").read_text())["mine"] == {
        "id": "run-1",
        "step": 7,
    }
    cut = Sink()
    tracked(tmp_path, cut, [5, 6, 7], forgets=True)
    assert cut.steps == [5, 6, 7]


def test_a_tracker_that_fails_costs_one_warning_and_what_failed(tmp_path):
    def odd(step):
        if step % 2:
            raise SystemExit("no\nserver")

    sink = Sink(odd)
    (line,) = tracked(tmp_path, sink, [1, 2, 3, 4])
    assert line == "tracker mine failed (SystemExit: no); the run goes on, see metrics.jsonl"
    assert (sink.steps, sink.closed) == ([2, 4], True)


def test_a_tracker_that_cannot_be_opened_costs_one_warning(tmp_path):
    def closed(known):
        raise ConnectionError("refused")

    (line,) = tracked(tmp_path, closed, range(2000))
    assert "tracker mine can't be opened (ConnectionError: refused)" in line


def test_a_tracker_that_hangs_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "MAX_WAITING", 10)
    forever = threading.Event()
    began = time.monotonic()
    (line,) = tracked(tmp_path, Sink(lambda step: forever.wait()), range(50), limit_s=0.1)
    assert time.monotonic() - began < 3
    assert "is behind by 10 calls; further ones are dropped" in line
    (line,) = tracked(tmp_path, Sink(lambda step: forever.wait()), [1], limit_s=0.1)
    assert line.startswith("tracker mine did not finish in time; what it had not written is lost")
    forever.set()


def test_a_tracker_without_its_package_is_refused_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"names wandb, .*pip install 'ballast-rl\[wandb\]'"):
        Tracker(tmp_path, TrackingConfig(trackers=["wandb"]), run_name="run")


@pytest.mark.parametrize("names", ["[tensorbord]", "[wandb,wandb]"])
def test_names_of_trackers_are_checked(names):
    with pytest.raises(ValueError, match="tracking.trackers.*must name some of tensorboard, wandb"):
        compose([f"tracking.trackers={names}"])
