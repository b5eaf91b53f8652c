"""Check of an engine's answers: known tokens, finite log-probs, a version for each token.

Stands between vLLM and everything that trains, in the rollout worker's process. An answer without
these becomes a failed sample with its reason, never a reward of zero; an engine that gives no other
answer is not sampled from any further. Scores nothing and restarts nothing.
"""

from __future__ import annotations

import math

from workers.data.requests import Sample

MAX_IN_A_ROW = 64  # unusable answers of one engine, without a usable one in between
ROUNDING = 1e-3  # by which a log-prob may exceed 0


class UnusableAnswerError(RuntimeError):
    """Answer of an engine that is no response; the message is the reason, without numbers."""


class AnswerCheck:
    """Check of one engine's answers, which counts the unusable ones in a row.

    Args:
        engine: name of the engine, for messages.
        max_in_a_row: after so many unusable answers `check` raises.
    """

    def __init__(self, engine: str, *, max_in_a_row: int = MAX_IN_A_ROW) -> None:
        self._engine, self._max_in_a_row = engine, max_in_a_row
        self._in_a_row = 0
        self._last = ""

    def accept(self, sample: Sample, *, vocab_size: int) -> Sample:
        """Return `sample`, if it can train.

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
        """Raise where the engine gives nothing usable any more.

        Raises:
            RuntimeError: names the last answer's fault, and what to look at.
        """
        if self._in_a_row >= self._max_in_a_row:
            raise RuntimeError(
                f"{self._engine} gave {self._in_a_row} unusable answers in a row, the last: "
                f"{self._last}; look at its weights (non-finite?), rollout.dtype and "
                "rollout.engine_kwargs"
            )


def fault_of(sample: Sample, *, vocab_size: int) -> str | None:
    """Return the reason for which an answer can't train, or None; an aborted one may be empty."""
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
