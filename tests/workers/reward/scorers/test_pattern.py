"""Exactly one block of each tag, in order, and nothing after the last."""

from __future__ import annotations

import pytest

from workers.reward.base import RewardSample, score_sample
from workers.reward.scorers.pattern import Blocks, Pattern


def reward(scorer: Blocks | Pattern, response: str) -> float | None:
    return score_sample(scorer, RewardSample(prompt="", response=response)).reward


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<answer>3</answer>", 1.0),
        ("words <answer>3</answer>\n", 1.0),
        ("<answer>3</answer></answer>", 0.0),
        ("<answer>3</answer><answer>4</answer>", 0.0),
        ("<answer><answer>3</answer>", 0.0),
        ("<answer></answer>", 0.0),
        ("<answer> \n</answer>", 0.0),
        ("</answer>3<answer>", 0.0),
        ("<answer>3", 0.0),
        ("<answer>3</answer> and more", 0.0),
        ("3", 0.0),
        ("", 0.0),
    ],
)
def test_one_answer(response: str, expected: float) -> None:
    assert reward(Blocks(), response) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>a</think><answer>3</answer>", 1.0),
        ("<think>a</think>\nso\n<answer>3</answer>", 1.0),
        ("<answer>3</answer><think>a</think>", 0.0),
        ("<think>a<answer>3</answer></think>", 0.0),
        ("<think>a</think>", 0.0),
        ("a</think><answer>3</answer>", 0.0),
    ],
)
def test_two_blocks(response: str, expected: float) -> None:
    assert reward(Blocks(tags=("think", "answer")), response) == expected


def test_a_block_that_the_template_opened() -> None:
    scorer = Blocks(tags=("think", "answer"), opened=True)
    assert reward(scorer, "a</think><answer>3</answer>") == 1.0
    assert reward(scorer, "<think>a</think><answer>3</answer>") == 0.0


def test_only_the_text_before_the_stop_counts() -> None:
    assert reward(Blocks(stop_at="\n\n"), "<answer>3</answer>\n\nmore") == 1.0
    assert reward(Pattern(pattern=r"\d", stop_at="\n"), "3\nmore") == 1.0


@pytest.mark.parametrize("tags", [(), ("a", "a"), ("",)])
def test_tags_that_are_refused(tags: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="tags must be different names"):
        Blocks(tags=tags)
