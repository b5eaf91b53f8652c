"""Choose the sequences on which learner and engines are compared, and hold the learner's part.

The driver chooses once, at the start of a run. Nothing is computed or compared here: ranks and
engines compute log-probs, and `workers.weight_sync.attestation` compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from workers.data.images.spans import ImageSpan

SHORT_TOKENS = 64  # of each prompt, at most; more where an image would be cut
# One more sequence: prompts joined, as far as the context goes. An engine puts the logits of all of
# its tokens into memory at once, 4 bytes x 152k x 1024 = 0.6 GB for a vocabulary of 152k.
LONG_TOKENS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSequence:
    """Sequence of a probe.

    Example, of one image of four tokens between two of text:
        ProbeSequence(
            tokens=[52, 9, 9, 9, 9, 61],
            images=(ImageSpan(offset=1, length=4, grid=(1, 4, 4), digest="9f86d081..."),),
            files=(b"...",),
        )

    Attributes:
        tokens: [T] ids.
        images: places of the images.
        files: bytes of the file of each.
    """

    tokens: list[int]
    images: tuple[ImageSpan, ...] = ()
    files: tuple[bytes, ...] = field(default=(), repr=False)

    def cut(self, limit: int, *, most: int) -> ProbeSequence:
        """Return the first `limit` tokens; never a part of an image.

        An image that is cut there is kept whole where it ends within `most` tokens, and else left
        out with all that follows it.
        """
        end = limit
        for span in self.images:
            if span.offset < end < span.offset + span.length:
                whole = span.offset + span.length
                end = whole if whole <= most else span.offset
        kept = sum(span.offset + span.length <= end for span in self.images)
        return ProbeSequence(
            tokens=self.tokens[:end], images=self.images[:kept], files=self.files[:kept]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerProbe:
    """Log-probs of the probe's tokens under the learner's weights, sequence after sequence.

    Example, a probe of three tokens in bfloat16:
        LearnerProbe(logprobs=[0.0, -0.31, -1.02], rounded=[0.0, -0.312, -1.018])

    Attributes:
        logprobs: [T] as training computes.
        rounded: [T] with other roundings; empty where learner and engines compute in float32.
    """

    logprobs: list[float]
    rounded: list[float] = field(default_factory=list)


def choose_probe(
    encoded: Sequence[ProbeSequence], *, context: int, budget: int
) -> list[ProbeSequence]:
    """Return the sequences of a probe: the beginnings of prompts, and one long sequence.

    Args:
        encoded: prompts.
        context: longest sequence, in tokens.
        budget: tokens that the learner may compute at once.

    Raises:
        ValueError: no prompt of two tokens or more.
    """
    usable = [one for one in encoded if len(one.tokens) > 1]
    if not usable:
        raise ValueError("the first prompts have no two tokens to compare weights by; remove them")
    limit = min(SHORT_TOKENS, context)
    room = max(0, budget - limit * len(usable))  # for images that go beyond the limit
    short: list[ProbeSequence] = []
    for one in usable:
        begin = one.cut(limit, most=min(context, limit + room))
        room -= max(0, len(begin.tokens) - limit)
        short.append(begin)
    lengths = [len(one.tokens) for one in short]
    room = min(LONG_TOKENS, context, budget - sum(lengths))
    if room <= max(lengths):
        return short
    # Text alone: what an image adds to long sequences, short ones show.
    text = [token for one in usable if not one.images for token in one.tokens]
    if not text:
        return short
    return [*short, ProbeSequence(tokens=(text * -(-room // len(text)))[:room])]
