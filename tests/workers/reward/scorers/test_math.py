"""Verdicts of `reward=math` on a table of answers, adversarial ones included."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from workers.reward.base import RewardSample, score_sample
from workers.reward.scorers.math import Math


def load_table() -> ModuleType:
    path = Path(__file__).with_name("math_cases.py")
    spec = importlib.util.spec_from_file_location("math_cases", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE = load_table()


def verdict(truth: str, response: str) -> float | None:
    sample = RewardSample(prompt="", response=response, ground_truth=truth)
    return score_sample(Math(), sample).reward


@pytest.mark.parametrize(("truth", "right", "wrong"), TABLE.CASES)
def test_the_table(truth: str, right: tuple[str, ...], wrong: tuple[str, ...]) -> None:
    verdicts = {response: verdict(truth, response) for response in (*right, *wrong)}
    assert verdicts == {response: float(response in right) for response in (*right, *wrong)}


def test_the_table_has_cases_enough() -> None:
    assert sum(len(right) + len(wrong) for _, right, wrong in TABLE.CASES) >= 200


@pytest.mark.parametrize(("truth", "response"), TABLE.KNOWN_ERRORS)
def test_known_errors_are_still_errors(truth: str, response: str) -> None:
    """A case that math-verify mends belongs into the table, and out of the guide."""
    assert verdict(truth, response) == 0.0


@pytest.mark.parametrize("truth", TABLE.UNREADABLE)
def test_a_truth_that_cannot_be_read_fails_the_sample(truth: str) -> None:
    assert verdict(truth, r"\boxed{3}") is None
    assert verdict(truth, truth) is None
