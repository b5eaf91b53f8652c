"""Define one row of a rollout: its columns while they grow, and when they are finished.

Used in the rollout worker by the session of the row. Knows no reward, and renders nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from workers.data.images.prompt_images import NO_IMAGES, PromptImages
from workers.data.requests import Sample
from workers.data.turns import TurnSpan


@dataclass(frozen=True, kw_only=True)
class Row:
    """Token-aligned columns of one row, L tokens.

    Example, a prompt of two tokens and a turn of two:
        Row(
            branch=0,
            tokens=[52, 61, 55, 2],
            loss_mask=[False, False, True, True],
            rollout_logprobs=[0.0, 0.0, -0.31, -0.02],
            weight_versions=[-1, -1, 7, 7],
            turns=(TurnSpan(number=1, start=2, end=4, finish_reason="stop", state=7),),
        )
    """

    branch: int
    tokens: list[int]
    loss_mask: list[bool]
    rollout_logprobs: list[float]
    weight_versions: list[int]
    turns: tuple[TurnSpan, ...]
    images: PromptImages = NO_IMAGES


class RowColumns:
    """Token-aligned columns of a row that grows, and the images among its tokens.

    Args:
        tokens: that the row starts with, none of which it trains.
        images: at their places in these tokens.
    """

    def __init__(self, tokens: Sequence[int], images: PromptImages = NO_IMAGES) -> None:
        self.tokens: list[int] = []
        self.images = NO_IMAGES
        self._mask: list[bool] = []
        self._logprobs: list[float] = []
        self._versions: list[int] = []
        self.append(tokens, images)

    def append(self, ids: Sequence[int], images: PromptImages = NO_IMAGES) -> None:
        """Append ids that were not sampled, and the images among them."""
        self.images = self.images.with_later(images, start=len(self.tokens))
        self.tokens += ids
        self._mask += [False] * len(ids)
        self._logprobs += [0.0] * len(ids)
        self._versions += [-1] * len(ids)

    def append_sampled(self, sample: Sample) -> None:
        """Append a turn of the policy."""
        self.tokens += sample.tokens
        self._mask += [True] * len(sample.tokens)
        self._logprobs += sample.logprobs
        self._versions += sample.weight_versions

    def cut(self, end: int) -> None:
        """Leave out the ids from `end` on, and the images among them."""
        self.images = self.images.before(end)
        for column in (self.tokens, self._mask, self._logprobs, self._versions):
            del column[end:]

    def row(
        self, branch: int, end: int, turns: Sequence[TurnSpan], rewards: Sequence[float]
    ) -> Row:
        """Return the first `end` ids as a finished row.

        Args:
            branch: number of the row.
            end: ids that are kept.
            turns: sampled in the row.
            rewards: of the turns in the order of their numbers, over all rows.
        """
        earned = dict(enumerate(rewards, start=1))
        return Row(
            branch=branch,
            tokens=self.tokens[:end],
            loss_mask=self._mask[:end],
            rollout_logprobs=self._logprobs[:end],
            weight_versions=self._versions[:end],
            turns=tuple(
                replace(span, reward=float(earned.get(span.number, 0.0))) for span in turns
            ),
            images=self.images.before(end),
        )
