"""Reductions and scans over packed sequences, without loops over time or sequences.

The few primitives that every part shares. Runs wherever a part runs. Knows neither losses nor
advantages.
Shapes: N packed tokens, `sequence_ids [N]` sorted; S sequences.
"""

import torch
from torch import Tensor


def num_segments(ids: Tensor) -> int:
    """Return the number of segments that `ids` [N] addresses (0 for an empty tensor)."""
    return int(ids.max().item()) + 1 if ids.numel() else 0


def segment_sum(values: Tensor, ids: Tensor, num: int) -> Tensor:
    """Sum `values` [N] per segment -> [num]."""
    return values.new_zeros(num).index_add(0, ids, values)


def segment_mean(values: Tensor, ids: Tensor, num: int) -> Tensor:
    """Average `values` [N] per segment -> [num]; 0 for an empty segment."""
    count = segment_sum(torch.ones_like(values), ids, num)
    return segment_sum(values, ids, num) / count.clamp(min=1)


def segment_max(values: Tensor, ids: Tensor, num: int, empty: float) -> Tensor:
    """Take the maximum of `values` [N] per segment -> [num]; `empty` for an empty segment."""
    start = values.new_full((num,), empty)
    return start.scatter_reduce(0, ids, values, reduce="amax", include_self=True)


def masked_sequence_mean(values: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    """Average over each sequence's trainable tokens, broadcast back to tokens -> [N]."""
    num = num_segments(ids)
    total = segment_sum(torch.where(mask, values, 0.0), ids, num)
    count = segment_sum(mask.to(values.dtype), ids, num).clamp(min=1)
    return (total / count)[ids]


def masked_sequence_sum(values: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    """Sum over each sequence's trainable tokens, broadcast back to tokens -> [N]."""
    num = num_segments(ids)
    return segment_sum(torch.where(mask, values, 0.0), ids, num)[ids]


def masked_sequence_max(values: Tensor, mask: Tensor, ids: Tensor, empty: float) -> Tensor:
    """Take the maximum over each sequence's trainable tokens, broadcast back to tokens -> [N]."""
    num = num_segments(ids)
    return segment_max(torch.where(mask, values, empty), ids, num, empty)[ids]


def response_position(mask: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 1-based index of each trainable token in its response, and the response's length.

    Both [N] int64.
    """
    num = num_segments(ids)
    count = segment_sum(mask.to(torch.int64), ids, num)  # [S]
    before = count.cumsum(0) - count  # [S] trainable tokens of earlier sequences
    return mask.to(torch.int64).cumsum(0) - before[ids], count[ids]


def discounted_suffix_sum(values: Tensor, ids: Tensor, factor: float) -> Tensor:
    """Compute `out[i] = values[i] + factor * out[i + 1]` inside each segment -> [N].

    A doubling scan: after round k, `out[i]` holds the first 2^k terms of its sum, so log2(longest)
    rounds suffice. No division by powers of `factor`: underflow of a power drops terms that are
    below the smallest float, and nothing else.
    """
    out = values.clone()
    if values.numel() == 0 or factor == 0.0:
        return out
    _, lengths = torch.unique_consecutive(ids, return_counts=True)
    ends = lengths.cumsum(0)
    positions = torch.arange(values.numel(), device=values.device)
    remaining = torch.repeat_interleave(ends, lengths) - positions  # [N] tokens left, own included
    longest = int(lengths.max().item())
    stride, power = 1, factor
    while stride < longest and power != 0.0:
        reachable = torch.where(remaining[:-stride] > stride, out[stride:], 0.0)
        out[:-stride].add_(reachable, alpha=power)
        stride, power = 2 * stride, power * power
    return out
