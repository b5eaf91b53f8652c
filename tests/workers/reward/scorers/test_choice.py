"""The marked letter counts, and no letter of a sentence."""

from __future__ import annotations

import pytest

from workers.reward.base import RewardSample, score_sample
from workers.reward.scorers.choice import Choice


def verdict(response: str, truth: str = "B") -> float | None:
    sample = RewardSample(prompt="", response=response, ground_truth=truth)
    return score_sample(Choice(), sample).reward


@pytest.mark.parametrize(
    "response",
    [
        "B",
        "b",
        "(B)",
        "B.",
        " B \n",
        "B) the second",
        r"\boxed{B}",
        r"so it is \boxed{\text{B}}",
        r"\boxed{(b)}",
        r"\boxed{A}? No, \boxed{B}",
        "<answer>B</answer>",
        "<answer> (B). </answer>",
        "The answer is B.",
        "The answer is (B)",
        "Answer: B",
        "**Answer:** B",
        "answer is A ... no, the answer is B",
        "A is wrong, C is wrong. The answer is B",
    ],
)
def test_right(response: str) -> None:
    assert verdict(response) == 1.0


@pytest.mark.parametrize(
    "response",
    [
        "",
        "A",
        "AB",
        "B or C",
        "Because of this",
        "A better answer is hard to find",
        "the answer is Bob",
        r"\boxed{C}",
        r"\boxed{B}, no: \boxed{C}",
        "<answer>A</answer> The answer is B",
        "I say A. But B was close",
        r"\boxed{BC}",
    ],
)
def test_wrong(response: str) -> None:
    assert verdict(response) == 0.0


@pytest.mark.parametrize("truth", ["(B)", "B.", "b", "B) the second"])
def test_forms_of_the_ground_truth(truth: str) -> None:
    assert verdict("B", truth) == 1.0


@pytest.mark.parametrize("truth", ["", "Z", "the second", "BC"])
def test_a_truth_that_is_no_letter_fails_the_sample(truth: str) -> None:
    assert verdict("B", truth) is None


def test_only_the_text_before_the_stop_counts() -> None:
    sample = RewardSample(prompt="", response="B\nQuestion: ... answer: C", ground_truth="B")
    assert score_sample(Choice(stop_at="\n"), sample).reward == 1.0


def test_letters_are_capitals() -> None:
    with pytest.raises(ValueError, match="letters must be capital letters"):
        Choice(letters="abc")
