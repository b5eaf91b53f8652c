"""Define the records of scoring and the interface of a scorer, and score samples safely.

Rollout workers make `RewardSample`s. In a scoring process a `Scorer` gives a plain score, which
`score_group` turns into `RewardResult`s. The module contains no scorer and starts no process.
"""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Protocol

SCORED = "scored"
CORRECT = "correct"  # the part that pass@k counts
ANSWER = "answer"  # the text for which maj@k votes
ABSTAINED = "dropped:abstained"  # the scorer returned None
MAX_PARTS = 64  # parts become columns of the rollout record
MAX_REASON_CHARS = 300
MAX_NOTE_CHARS = 1000
LARGEST = 3.4028234663852886e38  # that the record's 32 bits hold; beyond it is infinity


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSample:
    """One finished response, with the columns of its prompt.

    Example:
        RewardSample(prompt="2+3=", response="5", ground_truth="5", columns={"dataset": "add"})

    Attributes:
        prompt: the text, or the content of a chat's last message.
        messages: all messages of a chat; empty for a text prompt.
        images: the files of the prompt's images, in order; None unless the scorer reads images and
            prompts of the run show some.
    """

    prompt: str
    response: str
    ground_truth: str | list[str] | None = None  # of a list, any is right
    columns: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, Any], ...] = ()
    images: tuple[bytes, ...] | None = None


Siblings = tuple[RewardSample, ...]  # scored by one call: a sample alone, or all of a prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardResult:
    """Outcome of one sample.

    `outcome` is "scored", or "failed:<why>" or "dropped:abstained" with `reward` None: a failure
    is never a zero.

    Example:
        RewardResult(
            outcome="scored",
            reward=0.9,
            parts={"correct": 1.0},
            notes={"pred": "72"},
            seconds=0.0001,
        )

    Example, a scorer that took too long:
        RewardResult(outcome="failed:timeout", reward=None)

    Attributes:
        parts: numbers beside the reward, which become metrics; "correct" is the one that pass@k
            counts.
        notes: texts beside the reward, which are recorded.
    """

    outcome: str
    reward: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class Scorer(Protocol):
    """Scorer of one sample: a number, None to abstain, or a mapping with "reward" and named parts.

    A scorer may also have `prepare(self) -> None`, called once in each scoring process before the
    clock of the first sample starts; slow imports belong there, and before it
    `keep_in(self, folder) -> None` with the folder of the run, if it writes files. A scorer whose
    attribute `whole_group` is True is called with the list of all siblings of a prompt instead, one
    whose attribute `batches` is True with a list of samples of any prompts; both return as many
    scores, and an exception instead of a score fails that sample alone. A scorer that can't be
    tried on the first rows, because it is too heavy or waits for engines of the run, has
    `check(self) -> None`, which the driver calls instead. One that asks the run's own engines of a
    judge has `on_engines(self, engines)`, which returns it with their addresses.
    Where a row has several ground truths, of which any is right, a scorer is called with each,
    unless its attribute `reads_lists` is True. A scorer whose attribute `reads_images` is True gets
    the files of the prompt's images. `extract(self, sample) -> str | None`, where a
    scorer has it, gives the answer of a response, for which maj@k votes.
    """

    def __call__(self, sample: RewardSample, /) -> object:
        """Score one sample; a sample for which the scorer raises is a failed sample."""
        ...


def takes_group(scorer: object) -> bool:
    """Return True where a scorer wants all siblings of a prompt in one call."""
    return bool(getattr(scorer, "whole_group", False))


def takes_batch(scorer: object) -> bool:
    """Return True where a scorer wants many samples in one call, of whatever prompts."""
    return bool(getattr(scorer, "batches", False))


def reads_images(scorer: object) -> bool:
    """Return True where a scorer reads the files of a prompt's images."""
    return bool(getattr(scorer, "reads_images", False))


def hand_folder(scorers: Iterable[object], folder: str) -> None:
    """Hand the run's folder to the scorers that write files."""
    for scorer in scorers:
        keep_in = getattr(scorer, "keep_in", None)
        if keep_in is not None:
            keep_in(folder)


def joint_check(scorers: Iterable[object]) -> Callable[[], None] | None:
    """Return the checks of the scorers that are too heavy to be tried; None if there are none."""
    checks = [check for each in scorers if (check := getattr(each, "check", None)) is not None]

    def check_all() -> None:
        for check in checks:
            check()

    return check_all if checks else None


def failed(why: str, seconds: float = 0.0) -> RewardResult:
    """Return the outcome of a sample that could not be scored."""
    return RewardResult(outcome=f"failed:{why[:MAX_REASON_CHARS]}", reward=None, seconds=seconds)


def score_group(scorer: Any, siblings: Sequence[RewardSample]) -> list[RewardResult]:
    """Score samples and never raise: together if the scorer wants that, or else one by one."""
    if not (takes_group(scorer) or takes_batch(scorer)):
        return [score_sample(scorer, sample) for sample in siblings]
    began = time.perf_counter()
    try:
        scores = list(scorer(list(siblings)))
        if len(scores) != len(siblings):
            raise ValueError(f"{len(siblings)} samples need as many scores, got {len(scores)}")
    except BaseException as error:
        return [failed(_why(error), time.perf_counter() - began)] * len(siblings)
    seconds = (time.perf_counter() - began) / len(siblings)
    return [_result(score, seconds) for score in scores]


def score_sample(scorer: Scorer, sample: RewardSample) -> RewardResult:
    """Score one sample and never raise: every error becomes a failed outcome."""
    began = time.perf_counter()
    try:
        score = call_scorer(scorer, sample)
        answer = _answer(scorer, sample)
    # SystemExit and KeyboardInterrupt too: a scorer must not be able to end its process politely.
    except BaseException as error:
        return failed(_why(error), time.perf_counter() - began)
    result = _result(score, time.perf_counter() - began)
    if answer is None or ANSWER in result.notes:
        return result
    return replace(result, notes={**result.notes, ANSWER: answer[:MAX_NOTE_CHARS]})


def _answer(scorer: Scorer, sample: RewardSample) -> str | None:
    extract = getattr(scorer, "extract", None)
    return None if extract is None else extract(sample)


def call_scorer(scorer: Scorer, sample: RewardSample) -> object:
    """Call a scorer once, or once for each of several ground truths; return the highest score.

    A ground truth that the scorer can't read counts only if it can read none.
    """
    if takes_batch(scorer):
        together: Any = scorer
        (score,) = together([sample])
        if isinstance(score, Exception):
            raise score
        return score
    truths = sample.ground_truth
    if not isinstance(truths, list) or getattr(scorer, "reads_lists", False):
        return scorer(sample)
    scores: list[object] = []
    errors: list[Exception] = []
    for truth in truths:
        try:
            scores.append(scorer(replace(sample, ground_truth=truth)))
        except Exception as error:
            errors.append(error)
    if errors and not scores:
        raise errors[0]
    return max(scores, key=_rank)


def _rank(score: object) -> float:
    reward, _, _ = _read(score)
    return -math.inf if reward is None else reward


def _why(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _result(score: object, seconds: float) -> RewardResult:
    """Turn the value that a scorer returned into an outcome."""
    if isinstance(score, Exception):
        return failed(_why(score), seconds)
    try:
        reward, parts, notes = _read(score)
    except Exception as error:  # a value's own methods are the user's code, too
        return failed(_why(error), seconds)
    if reward is None:
        return RewardResult(outcome=ABSTAINED, reward=None, notes=notes, seconds=seconds)
    bad = {name: value for name, value in parts.items() if not abs(value) <= LARGEST}
    if not abs(reward) <= LARGEST:  # NaN is not, either
        return failed(f"non-finite reward {reward}", seconds)
    if bad:
        return failed(f"non-finite part {bad}", seconds)
    return RewardResult(outcome=SCORED, reward=reward, parts=parts, notes=notes, seconds=seconds)


def _read(score: object) -> tuple[float | None, dict[str, float], dict[str, str]]:
    """Split the value that a scorer returned into the reward, its numbers and its texts."""
    if score is None:
        return None, {}, {}
    if not isinstance(score, Mapping):
        return _number("reward", score), {}, {}
    if "reward" not in score:
        raise ValueError(f'a reward mapping needs the key "reward", got {_short(score)}')
    if len(score) > MAX_PARTS:
        raise ValueError(f"a reward has at most {MAX_PARTS} parts, got {len(score)}")
    parts, notes = {}, {}
    for key, value in score.items():
        if key == "reward" or value is None:
            continue
        try:
            parts[str(key)] = _number(str(key), value)
        except (TypeError, ValueError):
            text = value if isinstance(value, str) else repr(value)
            notes[str(key)] = text[:MAX_NOTE_CHARS]
    reward = score["reward"]
    return (None if reward is None else _number("reward", reward)), parts, notes


def _number(name: str, value: object) -> float:
    if isinstance(value, (numbers.Real, Decimal)):
        return float(value)
    item = getattr(value, "item", None)  # one-element arrays and tensors
    if callable(item) and getattr(value, "size", 1) != 0:
        number = item()
        if isinstance(number, (numbers.Real, Decimal)):
            return float(number)
    raise TypeError(f"{name} must be a number, got {type(value).__name__} {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
