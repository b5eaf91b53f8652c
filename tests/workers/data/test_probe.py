"""Which sequences weights are compared by: beginnings of prompts, and one as long as fits."""

import pytest

from workers.data.probe import LONG_TOKENS, SHORT_TOKENS, choose_probe


def test_short_beginnings_and_one_long_sequence_of_joined_prompts():
    probe = choose_probe([[1, 2, 3], [4, 5]], context=8, budget=100)
    assert probe == [[1, 2, 3], [4, 5], [1, 2, 3, 4, 5, 1, 2, 3]]


def test_neither_context_nor_budget_is_exceeded():
    long_prompt = list(range(5000))
    assert [len(s) for s in choose_probe([long_prompt], context=4000, budget=8192)] == [
        SHORT_TOKENS,
        LONG_TOKENS,
    ]
    assert [len(s) for s in choose_probe([long_prompt], context=4000, budget=300)] == [64, 236]
    assert [len(s) for s in choose_probe([long_prompt], context=31, budget=4096)] == [31]


def test_prompts_that_cannot_be_compared_by_are_left_out():
    assert choose_probe([[], [7], [1, 2]], context=2, budget=10) == [[1, 2]]
    with pytest.raises(ValueError, match="no two tokens to compare weights by"):
        choose_probe([[], [7]], context=8, budget=10)
