"""Compare the letter of a multiple-choice answer with the ground truth.

Runs in a scoring process. The letter is the one that the response marks as its answer; a letter
that merely occurs in a sentence is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from workers.reward.base import RewardSample
from workers.reward.scorers.exact import check_stop, cut_at, truth_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    r"""1 if the marked letter is the ground truth's, else 0.

    A letter is marked by \boxed{B}, by <answer>B</answer>, by "answer: B" or "answer is (B)", or by
    standing alone, as "B", "(B)", "B." or "B) text". Of several marks of one kind the last counts;
    kinds are tried in this order.

    Attributes:
        letters: the possible answers.
        stop_at: only the response before this text counts, None for all of it.
    """

    letters: str = "ABCDEFGHIJ"
    stop_at: str | None = None

    def __post_init__(self) -> None:
        check_stop(self.stop_at)
        if not self.letters.isalpha() or not self.letters.isupper():
            raise ValueError(f"letters must be capital letters such as ABCD, got {self.letters!r}")

    def __call__(self, sample: RewardSample) -> dict[str, float | str]:
        """Score one response; part "answered" is 1 if a letter is marked, else 0.

        Raises:
            ValueError: the ground truth is none of the letters.
        """
        truth = self._bare(truth_of(sample))
        if truth is None:
            raise ValueError(
                f"the ground truth {sample.ground_truth!r} is none of the letters {self.letters}"
            )
        answer = self._answer(cut_at(sample.response, self.stop_at))
        if answer is None:
            return {"reward": 0.0, "answered": 0.0}
        return {"reward": float(answer == truth), "answered": 1.0, "answer": answer}

    def _answer(self, response: str) -> str | None:
        letter = f"[{self.letters}{self.letters.lower()}]"
        capital = f"[{self.letters}]"
        for pattern in (
            rf"\\boxed\{{\s*(?:\\text\{{)?\(?({letter})\)?\.?(?:\}})?\s*\}}",
            rf"<answer>\s*\(?({letter})\)?\.?\s*</answer>",
            rf"(?i:answer)(?i:\s+is)?\s*:?\s*\**\s*\(?({capital})\)?(?![\w'])",
        ):
            marked = re.findall(pattern, response)
            if marked:
                return str(marked[-1]).upper()
        return self._bare(response)

    def _bare(self, text: str) -> str | None:
        """Return the letter of a text that is a letter, with or without the option's words."""
        letter = f"[{self.letters}{self.letters.lower()}]"
        whole = re.fullmatch(rf"\(?({letter})\)?[.:]?", text.strip())
        labelled = re.match(rf"\(?([{self.letters}])[).:]\s", text.strip())
        found = whole or labelled
        return found.group(1).upper() if found else None
