"""Attention of a flat batch of sequences: FlashAttention on the whole, or padded blocks.

Where no kernel takes the flat batch it is gathered into right-padded blocks of sequences of similar
length, attention runs on each block, and the result is laid flat again. Padding exists inside
attention only, and causality hides the padding from real tokens, so the common case needs no mask.
Suffixes of shared prefixes are not here (`suffix_attention.py`).

Runs in the ranks of learner, reference and critic.

Legend: N tokens, B sequences of a block, L its longest, H heads (Hk key-value heads), D head size.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.engines.model.attention_kernels import (
    block_attention,
    dense_is_faster,
    dense_varlen,
    flash_varlen,
)

# A block takes sequences down to three quarters of its longest one; short sequences are not worth
# a kernel call of their own, so up to MIN_SLACK tokens of padding are always accepted.
MIN_SLACK = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Sequences of similar length, padded on the right to [B, L].

    Attributes:
        tokens: [B*L] int64, the flat index of each place; padding repeats its sequence's last.
        real: [B*L] bool, False on padding; None where nothing is padded.
        shape: (B, L).
    """

    tokens: Tensor
    real: Tensor | None
    shape: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceBlocks:
    """Division of a flat batch into padded blocks, and the way back.

    Attributes:
        blocks: every sequence is in exactly one.
        places: [N] int64, where token i is in the blocks laid end to end.
        in_order: one unpadded block that already is the flat batch: no gather at all.
        cu_seqlens: [S+1] int32, where each sequence of the flat batch begins.
        lengths: tokens of each sequence of the flat batch.
        longest: tokens of the longest sequence.
    """

    blocks: tuple[Block, ...]
    places: Tensor
    in_order: bool
    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    longest: int


def sequence_blocks(cu_seqlens: Tensor) -> SequenceBlocks:
    """Group the sequences of `cu_seqlens` [S+1] by length; one host read, then index arithmetic."""
    starts = cu_seqlens.cpu().numpy().astype(np.int64)  # [S+1]
    lengths = np.diff(starts)  # [S]
    order = np.argsort(-lengths, kind="stable")
    device = cu_seqlens.device
    places = np.empty(starts[-1], dtype=np.int64)  # [N]
    blocks, offset, first = [], 0, 0
    while first < len(order):
        longest = int(lengths[order[first]])
        floor = min(longest - MIN_SLACK, longest * 3 // 4)
        last = first + int(np.searchsorted(-lengths[order[first:]], -floor, side="right"))
        members = np.sort(order[first:last])
        column = np.arange(longest)  # [L]
        real = column < lengths[members, None]  # [B, L]
        tokens = starts[members, None] + np.minimum(column, lengths[members, None] - 1)
        places[tokens[real]] = offset + np.flatnonzero(real)
        blocks.append(
            Block(
                tokens=torch.from_numpy(tokens.ravel()).to(device),
                real=None if real.all() else torch.from_numpy(real.ravel()).to(device),
                shape=(len(members), longest),
            )
        )
        offset += tokens.size
        first = last
    return SequenceBlocks(
        blocks=tuple(blocks),
        places=torch.from_numpy(places).to(device),
        in_order=len(blocks) == 1 and blocks[0].real is None,
        cu_seqlens=cu_seqlens,
        lengths=tuple(lengths.tolist()),
        longest=int(lengths.max()),
    )


class _ToBlock(torch.autograd.Function):
    """Gather from [N, ...] into a padded block; its gradient is a gather too: places are unique."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, block: Block) -> Tensor:
        ctx.block, ctx.num_tokens = block, flat.shape[0]
        return flat.index_select(0, block.tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # Padding repeats a token, but no kept output depends on it: its gradient is dropped.
        block: Block = ctx.block
        if block.real is not None:
            grad, tokens = grad[block.real], block.tokens[block.real]
        else:
            tokens = block.tokens
        out = grad.new_zeros((ctx.num_tokens, *grad.shape[1:]))
        return out.index_copy_(0, tokens, grad), None


class _FromBlocks(torch.autograd.Function):
    """Gather from padded blocks to the flat batch: [sum of B*L, ...] to [N, ...]."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.num_places = padded.shape[0]
        return padded.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        out = grad.new_zeros((ctx.num_places, *grad.shape[1:]))
        return out.index_copy_(0, places, grad), None


def attend_sequences(
    flat: list[Tensor],  # query [N, H, D], key and value [N, Hk, D]
    sequences: SequenceBlocks,
    *,
    flash: bool,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Compute attention within each sequence of a flat batch: [N, H, D]."""
    if flash:
        if dense_is_faster(flat[0], sequences.lengths, window=window):
            return dense_varlen(*flat, lengths=sequences.lengths, scale=scale)
        return flash_varlen(
            *flat,
            cu_seqlens=sequences.cu_seqlens,
            longest=sequences.longest,
            scale=scale,
            window=window,
        )
    parts = []
    for block in sequences.blocks:
        blocked = flat
        if not sequences.in_order:
            blocked = [_ToBlock.apply(tensor, block) for tensor in flat]  # [B*L, H, D]
        q, k, v = (
            tensor.reshape(*block.shape, *tensor.shape[1:]).transpose(1, 2) for tensor in blocked
        )  # [B, H, L, D]
        out = block_attention(q, k, v, scale=scale, sliding_window=window, softcap=softcap)
        parts.append(out.transpose(1, 2).flatten(0, 1))  # [B*L, H, D]
    if sequences.in_order:
        # Some models take a view of it, and one sequence leaves its heads outside its tokens.
        return parts[0].contiguous()
    padded = parts[0] if len(parts) == 1 else torch.cat(parts)
    return _FromBlocks.apply(padded, sequences.places)
