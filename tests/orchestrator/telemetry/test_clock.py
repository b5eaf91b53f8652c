"""The driver's clock on a time that the test moves."""

import pytest

from orchestrator.telemetry.clock import Clock


def test_attributes_to_spans_and_the_rest_to_other():
    now = [100.0]
    clock = Clock(lambda: now[0])
    with clock.span("generate"):
        now[0] += 3.0
    now[0] += 0.5
    with clock.span("train"):
        now[0] += 1.0
    with clock.span("generate"):
        now[0] += 2.0
    assert clock.metrics() == pytest.approx(
        {"time/generate_s": 5.0, "time/train_s": 1.0, "time/other_s": 0.5, "time/step_s": 6.5}
    )
