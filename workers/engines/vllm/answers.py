"""What an engine may answer: a response of known tokens with finite log-probs, each of a version.

Between vLLM and everything that trains. An answer that is none of that becomes a failed sample with
its reason, never a reward of zero; an engine that gives nothing else is not sampled from any
further.
"""

from __future__ import annotations

import math

from workers.data.requests import Sample

MAX_IN_A_ROW = 64  # unusable answers of one engine, without a usable one in between
ROUNDING = 1e-3  # by which a log-prob may exceed 0


class UnusableAnswerError(RuntimeError):
    """An engine answered, and not with a response; the message is the reason, without numbers."""


class Answers:
    """Judges one engine's answers.

    Args:
        who: names the engine.
        max_in_a_row: after so many unusable answers `check` gives up.
    """

    def __init__(self, who: str, *, max_in_a_row: int = MAX_IN_A_ROW) -> None:
        self._who, self._max_in_a_row = who, max_in_a_row
        self._in_a_row = 0
        self._last = ""

    def judge(self, sample: Sample, *, vocab_size: int) -> Sample:
        """`sample`, if it can train.

        Raises:
            UnusableAnswerError: it can't.
        """
        fault = fault_of(sample, vocab_size=vocab_size)
        if fault is None:
            self._in_a_row = 0
            return sample
        self._in_a_row, self._last = self._in_a_row + 1, fault
        raise UnusableAnswerError(fault)

    def check(self) -> None:
        """Give up on an engine that answers nothing usable.

        Raises:
            RuntimeError: says what it answered, and what to look at.
        """
        if self._in_a_row >= self._max_in_a_row:
            raise RuntimeError(
                f"{self._who} gave {self._in_a_row} unusable answers in a row, the last: "
                f"{self._last}; look at its weights (non-finite?), rollout.dtype and "
                "rollout.engine_kwargs"
            )


def fault_of(sample: Sample, *, vocab_size: int) -> str | None:
    """Why an answer can't train, or None; an aborted one may be empty."""
    num_tokens = len(sample.tokens)
    if not num_tokens:
        return None if sample.finish_reason == "abort" else "empty response"
    if len(sample.logprobs) != num_tokens:
        return "another number of log-probs than of tokens"
    if len(sample.weight_versions) != num_tokens:
        return "another number of weight versions than of tokens"
    if not all(math.isfinite(value) for value in sample.logprobs):
        return "non-finite log-prob"
    if max(sample.logprobs) > ROUNDING:
        return "positive log-prob"
    if min(sample.tokens) < 0 or max(sample.tokens) >= vocab_size:
        return "token id beyond the vocabulary"
    return None
