"""Asking real processes what they did, of which one is busy and one is dead."""

import time

import pytest
import ray

from orchestrator.telemetry.span_collector import WAIT_S, SpanCollector
from workers.spans import SpanLog
from workers.worker_group import WorkerGroup


@pytest.fixture
def group():
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)

    class Worker:  # in here, so that it travels by value
        def __init__(self):
            self.spans = SpanLog()

        def work(self, seconds):
            with self.spans.doing("learn"):
                time.sleep(seconds)

        def take_spans(self):
            return self.spans.take()

    actor = ray.remote(Worker).options(num_cpus=0)
    yield WorkerGroup("learner", [actor.remote() for _ in range(3)])
    ray.shutdown()


def activities(timelines):
    return {(t.role, t.index): [span.activity for span in t.spans] for t in timelines}


def lives(handle):
    try:
        ray.get(handle.take_spans.remote())
    except ray.exceptions.RayActorError:
        return False
    return True


def test_who_is_busy_or_dead_is_left_out_and_heard_later(group):
    collector = SpanCollector([group])
    ray.get([handle.work.remote(0.01) for handle in group.handles])
    assert activities(collector.collect()) == {("learner", index): ["learn"] for index in range(3)}
    ray.kill(group.handles[2])
    while lives(group.handles[2]):  # the kill is on its way
        time.sleep(0.01)
    busy = group.handles[1].work.remote(WAIT_S + 1.0)  # it answers nothing meanwhile
    assert activities(collector.collect()) == {("learner", 0): []}
    began = time.monotonic()
    assert activities(collector.collect()) == {("learner", 0): []}
    assert time.monotonic() - began < WAIT_S  # who is silent is not waited for twice
    ray.get(busy)
    heard = {}
    while ("learner", 1) not in heard:
        heard |= activities(collector.collect())
    assert heard == {("learner", 0): [], ("learner", 1): ["learn"]}
