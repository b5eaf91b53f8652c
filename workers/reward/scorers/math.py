r"""Compare answers as mathematics with math-verify: "0.5", "1/2" and "\boxed{\frac12}" are equal.

Runs in a scoring process. math-verify's own time limits count a slow comparison as a wrong answer;
they are off here, because the pool's limit makes such a sample a failed one instead.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from workers.reward.base import RewardSample
from workers.reward.scorers.choice import Choice
from workers.reward.scorers.exact import check_stop, cut_at, truth_of

NO_ANSWER = {"n/a", "na", "nan", "none", "null"}  # as tables write a missing answer
BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
MAX_ROUNDING = 0.01  # of a small number: 0.0000001 and 0.0000002 are different answers


@dataclass(frozen=True, kw_only=True, slots=True)
class Math:
    r"""1 if an answer in the response equals the ground truth as mathematics, else 0.

    The ground truth may be bare ("1/2", "\frac{1}{2}") or marked ("$\frac{1}{2}$", "\boxed{1}").

    Attributes:
        stop_at: only the response before this text counts, None for all of it.
        float_rounding: digits after the point to which decimals are compared; rounding never makes
            numbers equal that differ by more than a hundredth of themselves.
    """

    stop_at: str | None = None
    float_rounding: int = 6

    def __post_init__(self) -> None:
        check_stop(self.stop_at)
        if importlib.util.find_spec("math_verify") is None:
            raise ModuleNotFoundError(
                "reward=math needs the package math-verify: "
                "run `pip install 'math-verify[antlr4-9-3]'`"
            )

    def prepare(self) -> None:
        """Import sympy and its parser and compile their tables, which takes a second."""
        logging.getLogger("math_verify").setLevel(logging.ERROR)
        self(RewardSample(prompt="", response=r"\boxed{\frac{1}{2}}", ground_truth="0.5"))

    def __call__(self, sample: RewardSample) -> float:
        """Compare one response; raises if the ground truth cannot be read as mathematics."""
        import math_verify

        truth = truth_of(sample)
        marked = truth if "$" in truth or r"\boxed" in truth else rf"\boxed{{{truth}}}"
        gold = math_verify.parse(marked, parsing_timeout=None)
        if not gold or truth.strip().casefold() in NO_ANSWER:
            raise ValueError(f"math-verify cannot read the ground truth {truth!r}")
        answer = _parsed(cut_at(sample.response, self.stop_at))
        return float(any(self._equal(one, other) for one in gold for other in answer))

    def extract(self, sample: RewardSample) -> str | None:
        """Return the answer of a response in one spelling: "0.5" for 0.5, 1/2 and 2/4."""
        answers = _parsed(cut_at(sample.response, self.stop_at))
        if not answers:
            return None
        try:
            return f"{float(answers[0]):.12g}"
        except (TypeError, ValueError, OverflowError):  # no number
            return str(answers[0])

    def _equal(self, gold: Any, answer: Any) -> bool:
        import math_verify

        equal = math_verify.verify(
            gold, answer, float_rounding=self.float_rounding, timeout_seconds=None
        )
        return equal and not self._rounded_away(gold, answer)

    def _rounded_away(self, gold: Any, answer: Any) -> bool:
        """Return True for two small numbers that only rounding to a fixed place makes equal.

        math-verify compares numbers rounded to `float_rounding` places after the point, so that
        every number far below 10^-`float_rounding` equals every other.
        """
        try:
            first, second = float(gold), float(answer)
        except (TypeError, ValueError, OverflowError):  # no numbers, or none that is small
            return False
        largest = max(abs(first), abs(second))
        small = largest < 10.0 ** (2 - self.float_rounding)
        return small and abs(first - second) > MAX_ROUNDING * largest


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkedAnswer:
    """1 if the last <answer> block of the response holds the ground truth, else 0.

    A ground truth that is one letter is compared as the letter of an option, any other as
    mathematics. A response without a block is wrong; an unreadable ground truth fails the sample.

    Attributes:
        letters: the possible options.
    """

    letters: str = "ABCDEFGHIJ"

    def prepare(self) -> None:
        """Import what the comparison of mathematics needs."""
        Math().prepare()

    def __call__(self, sample: RewardSample) -> float:
        """Compare one response."""
        blocks = BLOCK.findall(sample.response)
        inside = blocks[-1].strip() if blocks else ""
        truth = truth_of(sample).strip()
        if len(truth) == 1 and truth in self.letters:
            choice = Choice(letters=self.letters)
            return float(choice(replace(sample, response=inside))["reward"])
        marked = inside if "$" in inside or r"\boxed" in inside else rf"\boxed{{{inside}}}"
        return Math()(replace(sample, response=marked if inside else ""))


@lru_cache(maxsize=1)  # a response is scored, and then its answer is wanted
def _parsed(response: str) -> list[Any]:
    import math_verify

    return list(math_verify.parse(response, parsing_timeout=None))
