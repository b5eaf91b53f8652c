"""Choose the sequences on which learner and engines are compared, and hold the learner's part.

The driver chooses once, at the start of a run. Nothing is computed or compared here: ranks and
engines compute log-probs, and `workers.weight_sync.attestation` compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

SHORT_TOKENS = 64  # of each prompt, at most
# One more sequence: prompts joined, as far as the context goes. An engine puts the logits of all of
# its tokens into memory at once, 4 bytes x 152k x 1024 = 0.6 GB for a vocabulary of 152k.
LONG_TOKENS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerProbe:
    """Log-probs of the probe's tokens under the learner's weights, sequence after sequence.

    Example, a probe of three tokens, in bfloat16 and in float32:
        LearnerProbe(logprobs=[0.0, -0.31, -1.02], swapped=[0.0, -0.312, -1.018])

    Attributes:
        logprobs: [T] as training computes.
        swapped: [T] in the other precision; empty where both sides compute in float32.
    """

    logprobs: list[float]
    swapped: list[float] = field(default_factory=list)


def choose_probe(encoded: Sequence[Sequence[int]], *, context: int, budget: int) -> list[list[int]]:
    """Return the sequences of a probe: the beginnings of prompts, and one long sequence.

    Args:
        encoded: token ids of prompts.
        context: longest sequence, in tokens.
        budget: tokens that the learner may compute at once.

    Raises:
        ValueError: no prompt of two tokens or more.
    """
    usable = [list(tokens) for tokens in encoded if len(tokens) > 1]
    if not usable:
        raise ValueError("the first prompts have no two tokens to compare weights by; remove them")
    short = [tokens[: min(SHORT_TOKENS, context)] for tokens in usable]
    joined = list(chain.from_iterable(usable))
    room = min(LONG_TOKENS, context, budget - sum(map(len, short)))
    if room <= max(map(len, short)):
        return short
    repeated = joined * -(-room // len(joined))
    return [*short, repeated[:room]]
