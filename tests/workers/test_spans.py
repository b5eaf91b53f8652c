"""What a worker is recorded to do, on a time that the test moves."""

import pickle

import pytest

from workers.spans import MAX_LEVELS, Span, SpanLog, recorded


class Time:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def spans(log):
    return [(span.activity, span.begin_s, span.end_s) for span in log.take()[0]]


def test_several_requests_are_one_span_and_waiting_begins_when_the_last_is_done():
    now = Time()
    log = SpanLog(now)
    first, second, scoring = log.doing("generate"), log.doing("generate"), log.doing("generate")
    first.__enter__()
    now.now = 101.0
    second.__enter__()
    now.now = 102.0
    first.__exit__(None, None, None)
    scoring = log.doing("wait_for_reward")
    scoring.__enter__()  # the first waits for its score while the second is sampled
    now.now = 104.0
    second.__exit__(None, None, None)
    now.now = 107.0
    scoring.__exit__(None, None, None)
    now.now = 110.0
    assert spans(log) == [("generate", 100.0, 104.0), ("wait_for_reward", 104.0, 107.0)]


def test_weights_that_arrive_stop_the_sampling_for_so_long():
    now = Time()
    log = SpanLog(now)
    with log.doing("generate"):
        now.now = 101.0
        with log.doing("publish"):
            now.now = 101.5
        now.now = 103.0
    assert spans(log) == [
        ("generate", 100.0, 101.0),
        ("publish", 101.0, 101.5),
        ("generate", 101.5, 103.0),
    ]


def test_what_is_going_on_is_cut_and_goes_on():
    now = Time()
    log = SpanLog(now)
    with log.doing("learn"):
        now.now = 102.0
        assert spans(log) == [("learn", 100.0, 102.0)]
        assert spans(log) == []  # nothing twice, and nothing without length
        now.now = 103.0
    now.now = 109.0
    assert spans(log) == [("learn", 102.0, 103.0)]


def test_a_clock_that_is_set_back_makes_no_negative_span():
    now = Time()
    log = SpanLog(now)
    with log.doing("learn"):
        now.now = 90.0
    with log.doing("learn"):
        now.now = 91.0
    assert spans(log) == [("learn", 90.0, 91.0)]


def test_a_call_that_fails_has_ended():
    class Worker:
        def __init__(self):
            self.spans = SpanLog(Time())

        @recorded("learn")
        def train(self, *, scale):
            self.spans._now.now += 2.0
            return 1.0 / scale

    worker = Worker()
    assert worker.train(scale=2.0) == 0.5
    with pytest.raises(ZeroDivisionError):
        worker.train(scale=0.0)
    worker.spans._now.now += 5.0
    assert spans(worker.spans) == [("learn", 100.0, 102.0), ("learn", 102.0, 104.0)]


def test_levels_keep_their_shape_in_few_points():
    now = Time()
    log = SpanLog(now)
    requests = [log.doing("generate") for _ in range(2000)]
    for request in requests:
        request.__enter__()
    for request in requests:  # one finishes every 0.1 s
        now.now += 0.1
        request.__exit__(None, None, None)
    _, levels = log.take()
    assert len(levels) <= MAX_LEVELS + 1
    assert levels[-1] == (now.now, 0)
    for at, level in levels[1:]:
        assert level == 2000 - round((at - 100.0) / 0.1)
    assert log.take() == ((), ())


def test_spans_travel():
    span = Span(activity="learn", begin_s=1.0, end_s=2.0)
    assert pickle.loads(pickle.dumps(span)) == span
