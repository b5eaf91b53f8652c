"""Attention over packed sequences that cannot see across them, by name.

`varlen_sdpa` runs everywhere torch does. On a GPU in half precision it is torch's own
FlashAttention, on the flat batch. Elsewhere the flat batch is gathered into right-padded blocks of
sequences of similar length, `scaled_dot_product_attention` runs on each block, the result is laid
flat again. Padding exists inside attention only, and causality hides the padding from real tokens,
so the common case needs no mask at all. `flash_attention_2` is transformers' own and gets the same
batch through its variable-length arguments.

Runs in the ranks of learner, reference and critic. Not a cache: packed batches are scored and
trained, never generated from.

Legend: N tokens, B sequences of a block, L its longest, H heads (Hk key-value heads), D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.utils import is_flash_attn_2_available

from workers.engines.model.attention_kernels import (
    block_attention,
    dense_is_faster,
    dense_varlen,
    flash_computes,
    flash_varlen,
)

VARLEN_SDPA = "varlen_sdpa"
ATTENTION_NAMES = (VARLEN_SDPA, "flash_attention_2")

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


def varlen_sdpa(
    module: nn.Module,
    query: Tensor,  # [1, H, N, D]
    key: Tensor,  # [1, Hk, N, D]
    value: Tensor,  # [1, Hk, N, D]
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sequence_blocks: SequenceBlocks | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute exact causal attention within each packed sequence; output [1, N, H, D].

    Raises:
        ValueError: the model needs what this function does not compute (dropout, attention sinks,
            position bias, bidirectional attention, a ready mask), or no blocks were given.
    """
    _refuse(module, query, attention_mask, dropout=dropout, extras=kwargs)
    if sequence_blocks is None:
        raise ValueError(
            f"{type(module).__name__} was not given the lengths of the packed sequences: its model "
            f"does not pass them on, and learner.attention={VARLEN_SDPA} needs them; use another "
            "model"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    flat = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # [N, H, D]
    if query.is_cuda:
        # Rotary embeddings leave float32 behind under autocast; what is gathered is rounded first.
        flat = [_autocast(tensor) for tensor in flat]
    if flash_computes(flat[0], softcap=softcap):
        if dense_is_faster(flat[0], sequence_blocks.lengths, window=sliding_window):
            return dense_varlen(*flat, lengths=sequence_blocks.lengths, scale=scale)[None], None
        out = flash_varlen(
            *flat,
            cu_seqlens=sequence_blocks.cu_seqlens,
            longest=sequence_blocks.longest,
            scale=scale,
            window=sliding_window,
        )
        return out.unsqueeze(0), None
    parts = []
    for block in sequence_blocks.blocks:
        blocked = flat
        if not sequence_blocks.in_order:
            blocked = [_ToBlock.apply(tensor, block) for tensor in flat]  # [B*L, H, D]
        q, k, v = (
            tensor.reshape(*block.shape, *tensor.shape[1:]).transpose(1, 2) for tensor in blocked
        )  # [B, H, L, D]
        out = block_attention(q, k, v, scale=scale, sliding_window=sliding_window, softcap=softcap)
        parts.append(out.transpose(1, 2).flatten(0, 1))  # [B*L, H, D]
    if sequence_blocks.in_order:
        # Some models take a view of it, and one sequence leaves its heads outside its tokens.
        return parts[0].contiguous().unsqueeze(0), None
    padded = parts[0] if len(parts) == 1 else torch.cat(parts)
    return _FromBlocks.apply(padded, sequence_blocks.places).unsqueeze(0), None


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


def _autocast(tensor: Tensor) -> Tensor:
    """Round a tensor to the dtype of autocast's matrix products, where autocast is on."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def _refuse(
    module: nn.Module,
    query: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float,
    extras: dict[str, Any],
) -> None:
    found = [
        name for name in ("s_aux", "position_bias", "head_mask") if extras.get(name) is not None
    ]
    found += ["attention_mask"] if attention_mask is not None else []
    found += ["dropout"] if dropout else []
    is_causal = extras.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        found.append("bidirectional attention")
    if query.shape[0] != 1:
        found.append(f"a batch of {query.shape[0]} (packed batches are one row)")
    if found:
        raise ValueError(
            f"{VARLEN_SDPA} does not compute {', '.join(found)} (asked by "
            f"{type(module).__name__}): use another model or learner.attention=flash_attention_2"
        )


def attention_arguments(name: str, cu_seqlens: Tensor) -> dict[str, Any]:
    """Return the arguments that the model needs besides tokens and positions.

    Args:
        name: one of ATTENTION_NAMES.
        cu_seqlens: [S+1] int32.
    """
    if name == VARLEN_SDPA:
        return {"sequence_blocks": sequence_blocks(cu_seqlens)}
    longest = int(cu_seqlens.diff().max())
    return {
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def check_attention(name: str) -> None:
    """Raise ValueError for a name that is unknown or cannot run here."""
    if name not in ATTENTION_NAMES:
        raise ValueError(f"attention {name!r}: choose one of {', '.join(ATTENTION_NAMES)}")
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            f"attention {name!r} needs a GPU and the package flash-attn: install it or choose "
            f"{VARLEN_SDPA}"
        )


_varlen: Callable[..., tuple[Tensor, None]] = varlen_sdpa
# No mask function is registered under the name: transformers then builds no mask at all.
AttentionInterface.register(VARLEN_SDPA, _varlen)
