"""Define the records of scoring and the interface of a scorer, and score one sample safely.

Rollout workers make `RewardSample`s. In a scoring process a `Scorer` gives a plain score, which
`score_sample` turns into a `RewardResult`. The module contains no scorer and starts no process.
"""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

SCORED = "scored"
MAX_PARTS = 64  # parts become columns of the rollout record
MAX_REASON_CHARS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSample:
    """One finished response, with the columns of its prompt.

    Example:
        RewardSample(prompt="2+3=", response="5", ground_truth="5", columns={"dataset": "add"})
    """

    prompt: str
    response: str
    ground_truth: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardResult:
    """Outcome of one sample.

    `outcome` is "scored", or "failed:<why>" with `reward` None: a failure is never a zero.

    Example:
        RewardResult(outcome="scored", reward=0.9, parts={"exact": 1.0}, seconds=0.0001)

    Example, a scorer that took too long:
        RewardResult(outcome="failed:timeout", reward=None)
    """

    outcome: str
    reward: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Scorer(Protocol):
    """Scorer of one sample: gives a number, or a mapping with "reward" and named parts of it.

    A scorer may also have `prepare(self) -> None`, called once in each scoring process before the
    clock of the first sample starts; slow imports belong there.
    """

    def __call__(self, sample: RewardSample, /) -> float | Mapping[str, float]:
        """Score one sample; a sample for which the scorer raises is a failed sample."""
        ...


def failed(why: str, seconds: float = 0.0) -> RewardResult:
    """Return the outcome of a sample that could not be scored."""
    return RewardResult(outcome=f"failed:{why[:MAX_REASON_CHARS]}", reward=None, seconds=seconds)


def score_sample(scorer: Scorer, sample: RewardSample) -> RewardResult:
    """Score one sample and never raise: every error becomes a failed outcome."""
    began = time.perf_counter()
    try:
        score = scorer(sample)
        reward, parts = _read(score)
    # SystemExit and KeyboardInterrupt too: a scorer must not be able to end its process politely.
    except BaseException as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        return failed(why, time.perf_counter() - began)
    seconds = time.perf_counter() - began
    bad = {name: value for name, value in parts.items() if not math.isfinite(value)}
    if not math.isfinite(reward):
        return failed(f"non-finite reward {reward}", seconds)
    if bad:
        return failed(f"non-finite part {bad}", seconds)
    return RewardResult(outcome=SCORED, reward=reward, parts=parts, seconds=seconds)


def _read(score: object) -> tuple[float, dict[str, float]]:
    """Split the value that a scorer returned into the reward and its parts."""
    if not isinstance(score, Mapping):
        return _number("reward", score), {}
    if "reward" not in score:
        raise ValueError(f'a reward mapping needs the key "reward", got {_short(score)}')
    if len(score) > MAX_PARTS:
        raise ValueError(f"a reward has at most {MAX_PARTS} parts, got {len(score)}")
    parts = {str(name): _number(str(name), x) for name, x in score.items() if name != "reward"}
    return _number("reward", score["reward"]), parts


def _number(name: str, value: object) -> float:
    if isinstance(value, numbers.Real):
        return float(value)
    item = getattr(value, "item", None)  # one-element arrays and tensors
    if callable(item) and getattr(value, "size", 1) != 0:
        number = item()
        if isinstance(number, numbers.Real):
            return float(number)
    raise TypeError(f"{name} must be a number, got {type(value).__name__} {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
