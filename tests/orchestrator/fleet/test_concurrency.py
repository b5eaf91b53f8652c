"""The limit of an engine: when it grows, when it is cut, and that it settles where slots are."""

import dataclasses
import itertools

import pytest

from orchestrator.fleet.concurrency import Concurrency
from workers.data.requests import EngineLoad

CONTROL = Concurrency(limit=100, lowest=8, highest=120, increase=8, decrease=0.8)
CALM = EngineLoad(steps=5, kv_usage=0.5)


@pytest.mark.parametrize(
    ("load", "outstanding", "limit"),
    [
        (CALM, 100, 108),  # the limit holds samples back and the engine copes
        (CALM, 93, 108),  # one more group of 8 would not have fitted
        (CALM, 92, 100),  # it would have: the limit is not what holds samples back
        (EngineLoad(steps=5, preemptions=1), 40, 80),
        (EngineLoad(steps=5, kv_usage=0.95), 40, 80),
        (EngineLoad(steps=5, kv_usage=0.94), 100, 108),
        (EngineLoad(steps=5, waiting=20), 100, 100),  # as many as one cut removes
        (EngineLoad(steps=5, waiting=21), 100, 80),
        (EngineLoad(steps=5, waiting=1), 100, 100),  # no growth while anything queues
        (EngineLoad(steps=0, preemptions=3), 100, 100),  # no step, no news
        (EngineLoad(steps=5, preemptions=9), 101, 100),  # the last cut has not taken effect
    ],
)
def test_one_report(load, outstanding, limit):
    assert CONTROL.observe(load, outstanding=outstanding).limit == limit


def test_bounds_hold():
    high = dataclasses.replace(CONTROL, limit=115)
    assert high.observe(CALM, outstanding=115).limit == 120
    low = dataclasses.replace(CONTROL, limit=9)
    assert low.observe(EngineLoad(steps=1, preemptions=1), outstanding=8).limit == 8


@pytest.mark.parametrize("slots", [16, 50, 90])
def test_it_settles_where_every_slot_is_busy(slots):
    """An engine of so many slots whose queue is what exceeds them; always more to give out."""
    control, limits = CONTROL, []
    for _ in range(200):
        held = control.limit
        load = EngineLoad(steps=1, kv_usage=0.3, waiting=max(0, held - slots))
        control = control.observe(load, outstanding=held)
        limits.append(control.limit)
    assert min(limits[100:]) >= slots - 1  # a cut rounds down
    assert max(limits[100:]) <= 1.25 * slots + CONTROL.increase


def test_it_backs_off_a_full_cache_and_tries_again():
    """Preemptions above 40 samples: the limit saws below, never stays above, never stays low."""
    control, limits = CONTROL, []
    for _ in range(200):
        held = control.limit
        control = control.observe(
            EngineLoad(steps=1, kv_usage=held / 45, preemptions=max(0, held - 40)),
            outstanding=held,
        )
        limits.append(control.limit)
    tail = limits[100:]
    assert max(tail) <= 40 + CONTROL.increase
    assert min(tail) >= int(0.8 * 40)
    assert all(after < before for before, after in itertools.pairwise(tail) if before > 40)
