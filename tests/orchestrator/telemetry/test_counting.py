"""Counts in messages: one thing has no s."""

import pytest

from orchestrator.telemetry.counting import counted


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
