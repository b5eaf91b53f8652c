"""Check the form of a response with a regular expression.

Runs in a scoring process. The pool, not this module, ends a pattern that backtracks for ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from workers.reward.base import RewardSample


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """1 if the response matches a regular expression, else 0. A dot matches line breaks too.

    Attributes:
        pattern: a Python regular expression.
        whole: True if the pattern must match the whole response, surrounding white space apart;
            False if any part is enough.
    """

    pattern: str
    whole: bool = True

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(
                f"pattern {self.pattern!r} is not a regular expression: {error}"
            ) from error

    def __call__(self, sample: RewardSample) -> float:
        """Match one response."""
        if self.whole:
            found = re.fullmatch(self.pattern, sample.response.strip(), re.DOTALL)
        else:
            found = re.search(self.pattern, sample.response, re.DOTALL)
        return float(found is not None)
