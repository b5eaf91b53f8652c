"""Aggregations: weights that make per-token losses one scalar, by global denominators.

Functions from the metadata of one optimizer batch (all ranks, all micro-batches) to a weight per
sequence; token t of sequence s contributes `weight[s] * loss[t]`, and contributions are summed
everywhere. Runs in the driver. Nothing here is a mean over anything local, so the gradient is the
same for every micro-batch split, number of ranks, packing and padding.

B = number of sequences of the optimizer batch, the empty ones included; len = trainable tokens.
Tokens count when `loss_mask` is True. Tokens that a correction drops keep their place in the
denominator; sequences whose mask was cleared (overlong filtering) lose theirs in token counts only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.inputs import BatchMetadata
from algorithms.parts import Aggregation
from algorithms.segments import segment_sum
from algorithms.validation import check_positive


def _reciprocal(count: Tensor) -> Tensor:
    """Return 1 / count, and 0 where count is 0: no token carries that weight."""
    return torch.where(count > 0, 1.0 / count.clamp(min=1.0), torch.zeros_like(count))


@dataclass(frozen=True, kw_only=True)
class TokenMean(Aggregation):
    """Mean over all tokens: 1 / sum(len). DAPO (2503.14476) Eq. 8."""

    def __call__(self, metadata: BatchMetadata) -> Tensor:
        """See :class:`algorithms.parts.Aggregation`."""
        lengths = metadata.lengths.float()
        return _reciprocal(lengths.sum()).expand(lengths.shape).clone()


@dataclass(frozen=True, kw_only=True)
class SequenceMean(Aggregation):
    """Mean over sequences of the mean over tokens: 1 / (B len). GRPO (2402.03300) Eq. 3."""

    def __call__(self, metadata: BatchMetadata) -> Tensor:
        """See :class:`algorithms.parts.Aggregation`."""
        lengths = metadata.lengths.float()
        return _reciprocal(lengths) / max(lengths.numel(), 1)


@dataclass(frozen=True, kw_only=True)
class SequenceSum(Aggregation):
    """Mean over sequences of the sum over tokens: 1 / B. The plain policy gradient."""

    def __call__(self, metadata: BatchMetadata) -> Tensor:
        """See :class:`algorithms.parts.Aggregation`."""
        lengths = metadata.lengths.float()
        return torch.full_like(lengths, 1.0 / max(lengths.numel(), 1))


@dataclass(frozen=True, kw_only=True)
class FixedLength(Aggregation):
    """Sum over tokens by a constant: 1 / (B max_length). Dr.GRPO (2503.20783).

    Attributes:
        max_length: the generation budget in tokens.
    """

    max_length: int

    def __post_init__(self) -> None:
        check_positive("max_length", self.max_length)

    def __call__(self, metadata: BatchMetadata) -> Tensor:
        """See :class:`algorithms.parts.Aggregation`."""
        lengths = metadata.lengths.float()
        return torch.full_like(lengths, 1.0 / (max(lengths.numel(), 1) * self.max_length))


@dataclass(frozen=True, kw_only=True)
class GroupTokenMean(Aggregation):
    """Mean over prompts of the mean over the group's tokens: 1 / (P sum_group(len)).

    CPGD (2505.12504) Eq. 2. P counts the groups of the optimizer batch, the empty ones included;
    a group of which the batch holds a part is a group of that part.
    """

    def __call__(self, metadata: BatchMetadata) -> Tensor:
        """See :class:`algorithms.parts.Aggregation`."""
        lengths = metadata.lengths.float()
        labels, group = torch.unique(metadata.group_ids, return_inverse=True)
        group_tokens = segment_sum(lengths, group, labels.numel())  # [P]
        weights: Tensor = _reciprocal(group_tokens) / max(labels.numel(), 1)
        return weights[group]


def by_rollout(metadata: BatchMetadata) -> tuple[BatchMetadata, Tensor | None]:
    """Return the metadata of rollouts, and the rollout of each row [S].

    A batch in which every row is a rollout of its own is returned as it is, with None.
    """
    if metadata.rollout_ids is None:
        return metadata, None
    labels, rollouts = torch.unique(metadata.rollout_ids, return_inverse=True)
    num = labels.numel()
    if num == rollouts.numel():
        return metadata, None
    first = torch.full((num,), rollouts.numel(), dtype=torch.int64)
    first = first.scatter_reduce(0, rollouts, torch.arange(rollouts.numel()), reduce="amin")
    merged = BatchMetadata(
        lengths=segment_sum(metadata.lengths, rollouts, num),
        group_ids=metadata.group_ids[first],
        rewards=metadata.rewards[first],
    )
    return merged, rollouts
