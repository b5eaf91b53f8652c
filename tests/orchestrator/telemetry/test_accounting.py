"""Shares of a step: they add up, nothing counts twice, and the trace says the same."""

import json
import random

import pytest

from orchestrator.telemetry.accounting import Accounting, driver_timeline, shares
from orchestrator.telemetry.clock import Clock
from orchestrator.telemetry.trace_file import TraceFile, truncate_trace
from workers.spans import ACTIVITIES, Span, Timeline


def span(activity, begin, end):
    return Span(activity=activity, begin_s=begin, end_s=end)


def test_a_rank_that_scores_learns_and_waits():
    spans = [span("score", 8.0, 11.0), span("learn", 12.0, 16.0), span("publish", 19.0, 25.0)]
    # Of the 10 s from 10 to 20: 1 s of scoring, 4 of learning, 1 of publishing.
    assert shares(spans, 10.0, 20.0) == pytest.approx(
        {"score": 0.1, "learn": 0.4, "publish": 0.1, "idle": 0.4}
    )


def test_the_first_in_order_counts_where_spans_overlap():
    spans = [span("generate", 0.0, 8.0), span("publish", 2.0, 3.0), span("generate", 5.0, 9.0)]
    assert shares(spans, 0.0, 10.0) == pytest.approx({"generate": 0.8, "publish": 0.1, "idle": 0.1})


def test_nothing_to_do_and_no_time_to_do_it_in():
    assert shares([], 3.0, 4.0) == {"idle": 1.0}
    assert shares([span("learn", 0.0, 9.0)], 3.0, 3.0) == {"idle": 1.0}
    assert shares([span("learn", 0.0, 9.0)], 3.0, 4.0) == {"idle": 0.0, "learn": 1.0}


@pytest.mark.parametrize("seed", range(200))
def test_any_spans_add_up_to_one_and_agree_with_counting_ticks(seed):
    """Spans with whole-numbered ends: every tick of the window belongs to exactly one activity."""
    draw = random.Random(seed)
    spans = []
    for _ in range(draw.randrange(25)):
        begin = draw.randrange(-20, 60)
        spans.append(span(draw.choice(ACTIVITIES), begin, begin + draw.randrange(30)))
    first, last = 0, draw.randrange(1, 50)
    ticks = {}
    for tick in range(first, last):
        on = {s.activity for s in spans if s.begin_s <= tick < s.end_s}
        current = next((name for name in ACTIVITIES if name in on), "idle")
        ticks[current] = ticks.get(current, 0) + 1
    found = shares(spans, first, last)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)
    assert {name: value for name, value in found.items() if value} == pytest.approx(
        {name: count / (last - first) for name, count in ticks.items()}
    )


class Run:
    """A clock that the test moves, workers whose answers the test arranges, and an accounting."""

    def __init__(self, folder=None):
        self.now = 1000.0
        self.answers = []
        trace = None if folder is None else TraceFile(folder)
        self.accounting = Accounting(self.collect, trace)

    def collect(self):
        answers, self.answers = self.answers, []
        return answers

    def step(self, number, *, generate, train, rest=0.0):
        clock = Clock(lambda: self.now)
        with clock.span("generate"):
            self.now += generate
        self.now += rest
        with clock.span("train"):
            self.now += train
        metrics = {"staleness/max": 1.0, "ledger/in_flight": 8.0}
        return self.accounting.step(number, clock, metrics), clock


def timeline(role, index, *spans, levels=()):
    return Timeline(role=role, index=index, spans=spans, levels=levels)


def of(metrics, role):
    prefix = f"bubble/{role}/"
    return {
        name.removeprefix(prefix).removesuffix("_frac"): value
        for name, value in metrics.items()
        if name.startswith(prefix)
    }


def test_a_role_is_the_mean_of_its_workers_and_the_driver_is_never_idle():
    run = Run()
    run.answers = [
        timeline("rollout", 0, span("generate", 1000.0, 1006.0)),
        timeline("rollout", 1, span("generate", 1000.0, 1002.0), span("publish", 1009.0, 1010.0)),
        timeline("learner", 0, span("learn", 1007.0, 1010.0)),
    ]
    metrics, _ = run.step(1, generate=6.0, rest=1.0, train=3.0)
    assert of(metrics, "rollout") == pytest.approx({"generate": 0.4, "publish": 0.05, "idle": 0.55})
    assert of(metrics, "learner") == pytest.approx({"learn": 0.3, "idle": 0.7})
    assert of(metrics, "driver") == pytest.approx(
        {"generate": 0.6, "learn": 0.3, "drive": 0.1, "idle": 0.0}
    )


def test_what_goes_on_beyond_a_step_counts_in_each_for_its_part():
    run = Run()
    # Collected a little after the first step's end: until then the engine sampled.
    run.answers = [timeline("rollout", 0, span("generate", 1000.0, 1010.5))]
    first, _ = run.step(1, generate=6.0, train=4.0)
    run.answers = [timeline("rollout", 0, span("generate", 1010.5, 1012.0))]
    second, _ = run.step(2, generate=2.0, train=2.0)
    assert of(first, "rollout") == pytest.approx({"generate": 1.0, "idle": 0.0})
    assert of(second, "rollout") == pytest.approx({"generate": 0.5, "idle": 0.5})


def test_an_activity_that_a_role_once_had_is_told_as_zero():
    run = Run()
    run.answers = [timeline("learner", 0, span("checkpoint", 1000.0, 1001.0))]
    run.step(1, generate=1.0, train=1.0)
    run.answers = [timeline("learner", 0)]
    second, _ = run.step(2, generate=1.0, train=1.0)
    assert of(second, "learner") == {"checkpoint": 0.0, "idle": 1.0}


def test_who_does_not_answer_is_in_no_mean():
    run = Run()
    run.answers = [timeline("rollout", 0, span("generate", 1000.0, 1002.0))]
    metrics, _ = run.step(1, generate=1.0, train=1.0)
    assert of(metrics, "rollout") == {"generate": 1.0, "idle": 0.0}
    assert of(metrics, "reward") == {}


def test_gaps_between_the_drivers_spans_are_its_own_work():
    now = [50.0]
    clock = Clock(lambda: now[0])
    now[0] = 51.0
    with clock.span("train"):
        now[0] = 53.0
    with clock.span("publish"):
        now[0] = 54.0
    now[0] = 54.5
    spans = driver_timeline(clock, (50.0, 54.5)).spans
    assert [(s.activity, s.begin_s, s.end_s) for s in spans] == [
        ("drive", 50.0, 51.0),
        ("learn", 51.0, 53.0),
        ("publish", 53.0, 54.0),
        ("drive", 54.0, 54.5),
    ]


def events(folder):
    return json.loads((folder / "trace.json").read_text())


def test_the_trace_is_whole_after_every_step(tmp_path):
    run = Run(tmp_path)
    assert events(tmp_path) == []
    for number in (1, 2):
        begin = run.now
        run.answers = [
            timeline(
                "rollout",
                0,
                span("generate", begin, begin + 0.25),
                levels=((begin, 3), (begin + 0.25, 0)),
            )
        ]
        run.step(number, generate=0.25, train=0.25)
        slices = [event for event in events(tmp_path) if event["ph"] == "X"]
        assert len([event for event in slices if event["name"] == f"step {number}"]) == 1
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events(tmp_path)
        if event["name"] == "thread_name"
    }
    assert names == {(1, 0): "driver 0", (2, 0): "engine 0"}
    engine = [event for event in slices if event["pid"] == 2]
    assert [(event["name"], event["ts"], event["dur"]) for event in engine] == [
        ("generate", 1_000_000_000, 250_000),
        ("generate", 1_000_500_000, 250_000),
    ]
    counters = [(e["name"], e["args"]["value"]) for e in events(tmp_path) if e["ph"] == "C"]
    assert counters[:4] == [
        ("samples with engine 0", 3),
        ("samples with engine 0", 0),
        ("staleness", 1.0),
        ("groups in flight", 8.0),
    ]


def test_what_follows_the_last_step_is_in_the_trace_too(tmp_path):
    run = Run(tmp_path)
    run.step(1, generate=1.0, train=1.0)
    run.answers = [timeline("learner", 0, span("checkpoint", 1002.0, 1003.0))]
    run.accounting.finish()
    assert events(tmp_path)[-1]["name"] == "checkpoint"


@pytest.mark.parametrize("last_step", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("damage", ["", "cut"])
def test_a_resumed_run_goes_on_where_its_checkpoint_was(tmp_path, last_step, damage):
    run = Run(tmp_path)
    for number in (1, 2, 3):
        run.answers = [timeline("learner", 0, span("learn", run.now, run.now + 1.0))]
        run.step(number, generate=1.0, train=1.0)
    path = tmp_path / "trace.json"
    if damage:  # in the middle of the last step's last event
        path.write_bytes(path.read_bytes()[:-20])
    truncate_trace(tmp_path, last_step)
    assert [e["args"]["step"] for e in events(tmp_path) if e["name"].startswith("step ")] == [
        number for number in (1, 2, 3) if number <= last_step
    ]
    resumed = Run(tmp_path)
    resumed.now = 2000.0
    resumed.step(last_step + 1, generate=1.0, train=1.0)
    assert events(tmp_path)[-1]["name"] == "groups in flight"
    steps = [e["args"]["step"] for e in events(tmp_path) if e["name"].startswith("step ")]
    assert steps == sorted(set(steps))


def test_a_trace_that_grows_too_large_loses_its_oldest_steps_and_no_name(tmp_path):
    trace = TraceFile(tmp_path, limit_bytes=4000)
    spans = [span("learn", 1.0 * number, 1.0 * number + 0.5) for number in range(5)]
    largest = 0
    for step in range(1, 101):
        rows = [timeline("learner", 0, *spans), *([timeline("rollout", 3)] if step == 1 else [])]
        trace.write_step(step, (step, step + 1.0), rows, {})
        largest = max(largest, (tmp_path / "trace.json").stat().st_size)
    trace.finish([])
    assert largest <= 4002  # with the closing bracket
    kept = events(tmp_path)
    steps = [event["args"]["step"] for event in kept if event["name"].startswith("step ")]
    assert steps == list(range(steps[0], 101))
    assert 3 <= len(steps) <= 10
    assert sum(event["name"] == "learn" for event in kept) == 5 * len(steps)
    names = [event["args"]["name"] for event in kept if event["name"] == "thread_name"]
    assert names == ["rank 0", "engine 3"]
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
    truncate_trace(tmp_path, 99)
    assert events(tmp_path)[-1]["name"] == "learn"
    again = TraceFile(tmp_path, limit_bytes=10)  # less than a step
    again.write_step(100, (100.0, 101.0), [timeline("learner", 0, *spans)], {})
    again.finish([])
    assert sum(event["name"].startswith("step ") for event in events(tmp_path)) == 1


def test_no_trace_no_file(tmp_path):
    truncate_trace(tmp_path, 3)
    run = Run()
    run.step(1, generate=1.0, train=1.0)
    run.accounting.finish()
    assert list(tmp_path.iterdir()) == []
