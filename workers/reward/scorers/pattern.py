"""Check the form of a response with a regular expression, or that it has exactly one block.

Runs in a scoring process. The pool, not this module, ends a pattern that backtracks for ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from workers.reward.base import RewardSample
from workers.reward.scorers.exact import check_stop, cut_at


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """1 if the response matches a regular expression, else 0. A dot matches line breaks too.

    Attributes:
        pattern: a Python regular expression.
        whole: True if the pattern must match the whole response, surrounding white space apart;
            False if any part is enough.
        stop_at: only the response before this text counts, None for all of it.
    """

    pattern: str
    whole: bool = True
    stop_at: str | None = None

    def __post_init__(self) -> None:
        check_stop(self.stop_at)
        try:
            re.compile(self.pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(
                f"pattern {self.pattern!r} is not a regular expression: {error}"
            ) from error

    def __call__(self, sample: RewardSample) -> float:
        """Match one response."""
        response = cut_at(sample.response, self.stop_at)
        if self.whole:
            found = re.fullmatch(self.pattern, response.strip(), re.DOTALL)
        else:
            found = re.search(self.pattern, response, re.DOTALL)
        return float(found is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """1 if every tag opens once and closes once, in the given order and one after another, else 0.

    For the tags think and answer, "<think>a</think><answer>3</answer>" is right. A second <answer>
    or </answer> makes it wrong, as do an empty block, a missing end, the order reversed, one block
    inside the other, and text after the last block.

    Attributes:
        tags: names of the blocks, in order.
        opened: True if the prompt's template has opened the first block already, so that the
            response begins inside it.
        stop_at: only the response before this text counts, None for all of it.
    """

    tags: tuple[str, ...] = ("answer",)
    opened: bool = False
    stop_at: str | None = None

    def __post_init__(self) -> None:
        check_stop(self.stop_at)
        object.__setattr__(self, "tags", tuple(self.tags))
        if not self.tags or not all(self.tags) or len(set(self.tags)) != len(self.tags):
            raise ValueError(f"tags must be different names, one at least, got {list(self.tags)}")

    def __call__(self, sample: RewardSample) -> float:
        """Check one response."""
        text = cut_at(sample.response, self.stop_at).strip()
        if self.opened:
            text = f"<{self.tags[0]}>{text}"
        marks = [mark for tag in self.tags for mark in (f"<{tag}>", f"</{tag}>")]
        places = [text.find(mark) for mark in marks]
        once = all(text.count(mark) == 1 for mark in marks)
        if not once or places != sorted(places) or not text.endswith(marks[-1]):
            return 0.0
        inside = [text[places[k] + len(marks[k]) : places[k + 1]] for k in range(0, len(marks), 2)]
        return float(all(part.strip() for part in inside))
