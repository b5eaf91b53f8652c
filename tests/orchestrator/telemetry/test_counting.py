"""Counts in messages: one thing has no s."""

from collections import Counter

import pytest

from orchestrator.telemetry.counting import counted, describe_reasons


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "engine", "0 engines"),
        (1, "engine", "1 engine"),
        (1.0, "GPU", "1 GPU"),
        (2, "learner rank", "2 learner ranks"),
        (0.9, "GPU", "0.9 GPUs"),
        (12_345_678, "token", "12345678 tokens"),
    ],
)
def test_only_one_thing_has_no_plural(number, noun, text):
    assert counted(number, noun) == text


def test_reasons_are_kinds_with_one_example():
    many = Counter(
        {f"failed:TypeError: note must be a number, got str '{k}'": 1 for k in range(160)}
    )
    many["failed:timeout"] = 3
    assert describe_reasons(many) == (
        "160 x failed:TypeError (note must be a number, got str '0'), 3 x failed:timeout"
    )
    assert describe_reasons(Counter()) == "none"
