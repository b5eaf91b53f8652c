"""Verdicts are read out of what judges write, and become rewards from 0 to 1."""

from __future__ import annotations

import json

import pytest

from workers.reward.scorers.models.verdicts import read_verdict, rewards_of, verdict_schema

RANGE = {"lowest": 0.0, "highest": 10.0}
ALONE = verdict_schema(None, count=1, **RANGE)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"reason": "right", "score": 7}', 7),
        ('```json\n{"reason": "right", "score": 7.5}\n```', 7.5),
        ('<think>{maybe} 3?</think> So: {"reason": "has { in it", "score": 2}.', 2),
        # The response quoted its own verdict; the judge's comes last.
        ('It says {"reason": "great", "score": 10}. {"reason": "cheats", "score": 0}', 0),
        # What does not fit is passed over.
        ('{"reason": "x", "score": 4} {"score": 10} {"reason": "y", "score": 11}', 4),
    ],
)
def test_the_last_object_that_fits_is_the_verdict(answer: str, score: float) -> None:
    assert read_verdict(answer, ALONE)["score"] == score


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("", "no JSON object"),
        ("8/10", "no JSON object"),
        ('{"reason": "cut off, "score": 3', "no JSON object"),
        ('{"reason": "x", "score": "8"}', "'8' is not of type 'number'"),
        ('{"reason": "x", "score": 11}', "11 is greater than the maximum of 10"),
        ('{"score": 8}', "'reason' is a required property"),
    ],
)
def test_an_answer_without_a_verdict_names_its_fault(answer: str, fault: str) -> None:
    with pytest.raises(ValueError, match="the judge gave no verdict") as error:
        read_verdict(answer, ALONE)
    assert fault in str(error.value)


def test_scores_go_back_to_the_samples_from_the_order_of_the_prompt() -> None:
    """The judge saw samples 1, 2, 0 and gave 10, 5, 0."""
    verdict = {"reason": "", "scores": [10, 5, 0]}
    assert rewards_of(verdict, "scores", order=[1, 2, 0], **RANGE) == [0.0, 1.0, 0.5]
    assert rewards_of({"score": 4}, None, order=[0], lowest=1, highest=5) == [0.75]


def test_a_ranking_is_spread_evenly() -> None:
    """The judge saw samples 1, 2, 0; its third is the best, its first the second best."""
    verdict = {"reason": "", "ranking": [3, 1, 2]}
    assert rewards_of(verdict, "ranking", order=[1, 2, 0], **RANGE) == [1.0, 0.5, 0.0]
    assert rewards_of({"ranking": [1]}, "ranking", order=[0], **RANGE) == [0.5]


@pytest.mark.parametrize(
    ("together", "verdict", "message"),
    [
        ("ranking", {"ranking": [1, 1]}, r"must name 1 to 2 once each, got \[1, 1\]"),
        ("ranking", {"ranking": [2]}, "must name 1 to 2 once each"),
        ("scores", {"scores": [1, 2, 3]}, "2 samples need as many scores, got 3"),
        ("scores", {"scores": [1, -1]}, "scores must be from 0 to 10"),
    ],
)
def test_what_cannot_be_a_reward_is_refused(
    together: str, verdict: dict[str, list[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rewards_of(verdict, together, order=[0, 1], **RANGE)


@pytest.mark.parametrize(
    ("together", "fits", "not_so"),
    [
        (None, {"reason": "", "score": 10}, {"reason": "", "score": -1}),
        ("scores", {"reason": "", "scores": [0, 10]}, {"reason": "", "scores": [1]}),
        ("ranking", {"reason": "", "ranking": [2, 1]}, {"reason": "", "ranking": [0, 1]}),
    ],
)
def test_the_schema_of_each_kind(together: str | None, fits: object, not_so: object) -> None:
    schema = verdict_schema(together, count=2, **RANGE)
    assert read_verdict(json.dumps(fits), schema) == fits
    with pytest.raises(ValueError, match="gave no verdict"):
        read_verdict(json.dumps(not_so), schema)
