"""What stands still in an engine, from literal reports at literal times."""

import pytest

from workers.engines.vllm.progress import Progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def seen():
    """Calls `observe` ten seconds after the call before; the limit is 60 s."""
    clock = Clock()
    progress = Progress(60.0, clock=clock)

    def observe(tokens, *, steps, waiting=0, paused=False):
        clock.now += 10.0
        return progress.observe(tokens, steps=steps, waiting=waiting, paused=paused)

    observe.progress = progress
    return observe


def test_a_response_may_take_any_time_as_long_as_it_gains_tokens(seen):
    for step in range(1000):  # almost three hours
        assert seen({"a": step // 5}, steps=step) == []
    assert not seen.progress.hangs


def test_a_response_that_gains_no_token_while_the_engine_goes_on_stands_still(seen):
    for step in range(1, 8):
        assert seen({"a": 12, "b": step}, steps=step) == []
    assert seen({"a": 12, "b": 8}, steps=8) == ["a"]
    assert not seen.progress.hangs


def test_a_request_that_waits_for_its_first_token_is_left_in_peace(seen):
    for step in range(100):
        assert seen({"a": 0, "b": step}, steps=step, waiting=1) == []
        assert seen({"a": 0, "b": step}, steps=1000 + step) == []


def test_who_may_have_lost_its_place_to_others_is_judged_from_when_the_queue_is_empty(seen):
    for step in range(100):
        assert seen({"a": 12}, steps=step, waiting=3) == []
    for step in range(100, 106):
        assert seen({"a": 12}, steps=step) == []
    assert seen({"a": 12}, steps=106) == ["a"]


def test_an_engine_that_holds_requests_and_makes_no_step_hangs(seen):
    seen({"a": 3, "b": 0}, steps=5, waiting=1)
    for _ in range(6):
        seen({"a": 3, "b": 0}, steps=5, waiting=1)
        assert not seen.progress.hangs
    seen({"a": 3, "b": 0}, steps=5, waiting=1)
    assert seen.progress.hangs


def test_an_engine_without_requests_or_in_a_pause_does_not_hang(seen):
    for _ in range(100):
        seen({}, steps=5)
        assert not seen.progress.hangs
    for _ in range(100):
        assert seen({"a": 3}, steps=5, paused=True) == []
        assert not seen.progress.hangs
