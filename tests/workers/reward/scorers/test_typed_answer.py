"""The row says which form an answer has; what no rule finds is no answer, and no guess is made."""

from __future__ import annotations

from typing import Any

import pytest

from tests.workers.reward.scorers.answer_cases import (
    CHOICE_CASES,
    FLOAT_CASES,
    INTEGER_CASES,
    LIST_CASES,
    MATHEMATICS_CASES,
)
from workers.reward.base import RewardResult, RewardSample, score_sample
from workers.reward.scorers.typed_answer import TypedAnswer

FREE = {"question_type": "free_form"}


def scored(response: str, truth: str, **columns: Any) -> RewardResult:
    sample = RewardSample(prompt="", response=response, ground_truth=truth, columns=columns)
    return score_sample(TypedAnswer(), sample)


def verdict(response: str, truth: str, **columns: Any) -> int | None:
    result = scored(response, truth, **columns)
    assert result.outcome == "scored" and result.reward is not None, result
    return int(result.reward) if result.parts["answered"] else None


@pytest.mark.parametrize(("choices", "response", "truth", "right"), CHOICE_CASES)
def test_choices(choices: list[str], response: str, truth: str, right: int | None) -> None:
    row = {"question_type": "multi_choice", "answer_type": "text", "choices": choices}
    assert verdict(response, truth, **row) == right


@pytest.mark.parametrize(("response", "truth", "right"), INTEGER_CASES)
def test_whole_numbers(response: str, truth: str, right: int | None) -> None:
    assert verdict(response, truth, answer_type="integer", **FREE) == right


@pytest.mark.parametrize(("precision", "response", "truth", "right"), FLOAT_CASES)
def test_decimals(precision: float, response: str, truth: str, right: int | None) -> None:
    row = {"answer_type": "float", "precision": precision, **FREE}
    assert verdict(response, truth, **row) == right


@pytest.mark.parametrize(("response", "truth", "right"), LIST_CASES)
def test_lists(response: str, truth: str, right: int | None) -> None:
    assert verdict(response, truth, answer_type="list", **FREE) == right


@pytest.mark.parametrize(("response", "truth", "right"), MATHEMATICS_CASES)
def test_mathematics(response: str, truth: str, right: int | None) -> None:
    assert verdict(response, truth, answer_type="mathematics", **FREE) == right


@pytest.mark.parametrize(
    ("truth", "columns", "why"),
    [
        ("left", {"question_type": "multi_choice", "choices": ["a", "b"]}, "neither one of the"),
        ("1,400", {"answer_type": "integer"}, "is no number, answer_type=integer"),
        ("1.2", {"answer_type": "float"}, "needs a precision, it has None"),
        ("1, 2", {"answer_type": "list"}, "is no list, answer_type=list"),
        ("", {"answer_type": "integer"}, "the ground truth is empty"),
    ],
)
def test_a_row_that_cannot_be_read_fails_the_sample(
    truth: str, columns: dict[str, Any], why: str
) -> None:
    result = scored(r"\boxed{1}", truth, **columns)
    assert result.reward is None
    assert why in result.outcome


def test_the_answer_that_votes_has_one_spelling() -> None:
    row = {"answer_type": "float", "precision": 2.0, **FREE}
    spellings = (r"\boxed{0.50}", r"\boxed{1/2}", "The answer is 0.5 m.")
    assert {scored(each, "0.5", **row).notes["answer"] for each in spellings} == {"0.5"}
    row = {"question_type": "multi_choice", "choices": ["left", "right"]}
    spellings = ("B", r"\boxed{right}", "The answer is (B) right.")
    assert {scored(each, "left", **row).notes["answer"] for each in spellings} == {"B"}
