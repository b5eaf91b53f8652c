"""pass@k and maj@k against counts done by hand."""

import math

import pytest

from orchestrator.supply.evaluation import pass_at, summarise
from orchestrator.telemetry.heldout import HeldoutAnswer


def answer(uid, response, reward, outcome="scored", correct=None):
    return HeldoutAnswer(
        prompt_uid=uid,
        prompt=uid,
        response=response,
        ground_truth="7",
        reward=reward,
        outcome=outcome,
        correct=correct,
    )


def test_pass_at_counts_subsets():
    # 4 samples, 1 right: of the C(4,2) = 6 pairs, 3 hold the right one.
    assert pass_at(4, 1, 1) == pytest.approx(0.25)
    assert pass_at(4, 1, 2) == pytest.approx(3 / 6)
    assert pass_at(4, 0, 2) == 0.0
    assert pass_at(4, 3, 2) == 1.0
    assert pass_at(10, 3, 4) == pytest.approx(1 - math.comb(7, 4) / math.comb(10, 4))


def test_summary_of_two_prompts():
    answers = [
        answer("a", "7", 1.0),
        answer("a", "7\n", 1.0),
        answer("a", "8", 0.0),
        answer("a", "9", 0.0),
        answer("b", "5", 0.0),
        answer("b", "5", 0.0),
        answer("b", "7", 1.0),
        answer("b", "", None, "failed:timeout"),
    ]
    metrics = summarise(answers)
    assert metrics["mean"] == pytest.approx(3 / 8)
    assert metrics["failed_frac"] == pytest.approx(1 / 8)
    assert metrics["pass@1"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert metrics["pass@2"] == pytest.approx((5 / 6 + 3 / 6) / 2)
    assert metrics["pass@4"] == 1.0
    assert metrics["maj@4"] == pytest.approx(0.5)  # a: "7" is right; b: "5" is not


def test_right_is_what_the_scorer_calls_correct():
    """Right answers earn 0.9, and a wrong one 1.0 for its format: pass@1 is 2/3, the mean 2.8/3."""
    answers = [
        answer("a", "7", 0.9, correct=True),
        answer("b", "7", 0.9, correct=True),
        answer("c", "8", 1.0, correct=False),
    ]
    metrics = summarise(answers)
    assert metrics["pass@1"] == pytest.approx(2 / 3)
    assert metrics["mean"] == pytest.approx(2.8 / 3)


def test_an_abstention_is_neither_a_failure_nor_a_zero():
    answers = [
        answer("a", "7", 1.0),
        answer("b", "?", None, "dropped:abstained"),
        answer("c", "", None, "failed:timeout"),
        answer("d", "8", 0.0),
    ]
    metrics = summarise(answers)
    assert metrics["mean"] == pytest.approx(1 / 3)
    assert metrics["failed_frac"] == 0.25
    assert metrics["abstained_frac"] == 0.25
