"""Intervals against published and counted values."""

import pytest

from orchestrator.supply.intervals import bootstrap, wilson


@pytest.mark.parametrize(
    ("right", "prompts", "low", "high"),
    [
        (5, 10, 0.2366, 0.7634),
        (0, 30, 0.0, 0.1135),  # no width of zero where nothing, or all, is right
        (30, 30, 0.8865, 1.0),
        (15, 30, 0.3315, 0.6685),
    ],
)
def test_wilson(right, prompts, low, high):
    assert wilson(right / prompts, prompts) == pytest.approx((low, high), abs=1e-4)


def test_the_bootstrap_covers_the_mean_and_repeats():
    values = [0.0] * 50 + [1.0] * 50
    low, high = bootstrap(values)
    assert (low, high) == bootstrap(values)
    assert low == pytest.approx(0.40, abs=0.02)  # 0.5 - 1.96 * 0.05
    assert high == pytest.approx(0.60, abs=0.02)
    assert bootstrap([0.25] * 7) == (0.25, 0.25)


def test_a_large_evaluation_is_resampled_in_parts():
    low, high = bootstrap([0.0, 1.0] * 5_000)  # 200 of the 1000 rounds at once
    assert low == pytest.approx(0.490, abs=0.002)
    assert high == pytest.approx(0.510, abs=0.002)
