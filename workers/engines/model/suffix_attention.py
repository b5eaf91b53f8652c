"""Attention of suffixes, each of which continues a prefix that its siblings share.

A packed batch with shared prefixes is computed in two parts. The prefixes are sequences by
themselves (`attention.py`). The queries of a suffix see all keys of its prefix and the earlier keys
of the suffix: keys are gathered, prefix and suffix end to end, and the gradients of a prefix's
keys are summed over its suffixes in float32. FlashAttention takes all suffixes of a batch in one
call; elsewhere they are padded to blocks of similar size, prefixes on the left and suffixes on the
right, so that in a block every distance between a query and a key is that between two columns.

Runs in the ranks of learner, reference and critic.

Legend: n computed tokens, Q suffixes, B suffixes of a block, L the longest of them, P their longest
prefix, K = P + L keys, H heads (Hk key-value heads), D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers.data.shared_prefixes import SharedPrefixes
from workers.engines.model.attention_kernels import flash_varlen, suffix_block_attention

Index = npt.NDArray[np.int64]
# A block takes prefixes and suffixes down to three quarters of its longest, and always up to so
# many tokens of padding.
MIN_SLACK = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class SuffixBlock:
    """Suffixes of similar length behind prefixes of similar length.

    Attributes:
        shape: (B, L, P).
        absent: [B, 1, 1, K] bool, True where a prefix is shorter than P; None where none is.
    """

    shape: tuple[int, int, int]
    absent: Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SuffixBlocks:
    """Division of all suffixes into padded blocks, and the way back.

    Attributes:
        blocks: every suffix is in exactly one.
        queries: [sum of B*L] int64, the computed token of each query; padding repeats one.
        keys: [sum of B*K] int64, the computed token of each key; padding repeats one.
        places: [tokens of suffixes] int64, where each is in the blocks laid end to end.
    """

    blocks: tuple[SuffixBlock, ...]
    queries: Tensor
    keys: Tensor
    places: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatSuffixes:
    """Keys of all suffixes end to end, as FlashAttention takes them.

    Attributes:
        keys: [sum of prefix + suffix] int64, the computed token of each key.
        cu_queries, cu_keys: [Q+1] int32.
        longest_query, longest_key: tokens.
    """

    keys: Tensor
    cu_queries: Tensor
    cu_keys: Tensor
    longest_query: int
    longest_key: int


class Suffixes:
    """Suffixes of one batch; each kernel's index is made at its first use.

    Args:
        prefixes: the layout of the batch.

    Attributes:
        first: computed tokens before the first suffix: those of all prefixes.
    """

    def __init__(self, prefixes: SharedPrefixes) -> None:
        self._device = prefixes.computed.device
        starts = prefixes.cu_prefixes.cpu().numpy().astype(np.int64)  # [prefixes + 1]
        begins = prefixes.cu_suffixes.cpu().numpy().astype(np.int64)  # [Q+1]
        owners = prefixes.owners.cpu().numpy()  # [Q]
        self.first = int(begins[0])
        self._begins, self._lengths = begins[:-1], np.diff(begins)
        self._prefix_begins, self._prefix_lengths = starts[owners], np.diff(starts)[owners]

    def __len__(self) -> int:
        """Q."""
        return len(self._lengths)

    @cached_property
    def flat(self) -> FlatSuffixes:
        """Index of the keys for FlashAttention."""
        sizes = self._prefix_lengths + self._lengths  # [Q]
        ends = np.cumsum([0, *sizes])
        suffix = np.repeat(np.arange(len(sizes)), sizes)
        column = np.arange(ends[-1]) - ends[suffix]
        beyond = column - self._prefix_lengths[suffix]
        keys = np.where(
            beyond < 0, self._prefix_begins[suffix] + column, self._begins[suffix] + beyond
        )
        queries = np.cumsum([0, *self._lengths])
        return FlatSuffixes(
            keys=self._on_device(keys),
            cu_queries=self._on_device(queries.astype(np.int32)),
            cu_keys=self._on_device(ends.astype(np.int32)),
            longest_query=int(self._lengths.max()),
            longest_key=int(sizes.max()),
        )

    @cached_property
    def blocks(self) -> SuffixBlocks:
        """Padded blocks for kernels that take no flat batch."""
        blocks, queries, keys = [], [], []
        places = np.empty(int(self._lengths.sum()), dtype=np.int64)
        offset = 0
        for members in _similar(self._prefix_lengths, self._lengths):
            lengths, before = self._lengths[members], self._prefix_lengths[members]  # [B]
            longest, widest = int(lengths.max()), int(before.max())
            column = np.arange(longest)
            query = self._begins[members, None] + np.minimum(column, lengths[:, None] - 1)  # [B, L]
            left = np.arange(widest) - (widest - before[:, None])  # [B, P]
            prefix = self._prefix_begins[members, None] + np.maximum(left, 0)
            real = column < lengths[:, None]  # [B, L]
            places[query[real] - self.first] = offset + np.flatnonzero(real)
            offset += query.size
            queries.append(query.ravel())
            keys.append(np.concatenate([prefix, query], axis=1).ravel())
            absent = np.concatenate([left < 0, np.zeros_like(real)], axis=1)[:, None, None]
            blocks.append(
                SuffixBlock(
                    shape=(len(members), longest, widest),
                    absent=self._on_device(absent) if absent.any() else None,
                )
            )
        return SuffixBlocks(
            blocks=tuple(blocks),
            queries=self._on_device(np.concatenate(queries)),
            keys=self._on_device(np.concatenate(keys)),
            places=self._on_device(places),
        )

    def _on_device(self, values: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _similar(prefixes: Index, lengths: Index) -> list[Index]:
    """Divide suffixes [Q] into blocks of similar prefixes and similar lengths."""
    left = np.lexsort((-lengths, -prefixes))  # longest prefixes first, then longest suffixes
    blocks = []
    while len(left):
        similar = prefixes[left] >= _floor(int(prefixes[left[0]]))
        longest = int(lengths[left[similar]].max())
        taken = similar & (lengths[left] >= _floor(longest))
        blocks.append(np.sort(left[taken]))
        left = left[~taken]
    return blocks


def _floor(longest: int) -> int:
    return min(longest - MIN_SLACK, longest * 3 // 4)


class _Gather(torch.autograd.Function):
    """Gather from [n, ...]; gradients of a token that is taken several times add up in float32."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_tokens = flat.shape[0]
        return flat.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        shape = (ctx.num_tokens, *grad.shape[1:])
        total = torch.zeros(shape, dtype=torch.float32, device=grad.device)
        return total.index_add_(0, index, grad.float()).to(grad.dtype), None


def attend_suffixes(
    flat: Sequence[Tensor],  # query [n, H, D], key and value [n, Hk, D]
    suffixes: Suffixes,
    *,
    flash: bool,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Compute the attention of all tokens of suffixes, in their order: [., H, D].

    Args:
        flat: of all computed tokens.
        suffixes: of the batch.
        flash: True to compute with FlashAttention, which knows no soft cap.
        scale: of the scores.
        window: tokens that a token sees, itself included; None shows all before it.
        softcap: `c` of `c * tanh(scores / c)`, or None.
    """
    query, key, value = flat
    if flash:
        layout = suffixes.flat
        return flash_varlen(
            query[suffixes.first :],
            _Gather.apply(key, layout.keys),
            _Gather.apply(value, layout.keys),
            cu_seqlens=layout.cu_queries,
            longest=layout.longest_query,
            cu_keys=layout.cu_keys,
            longest_key=layout.longest_key,
            scale=scale,
            window=window,
        )
    padded = suffixes.blocks
    queries = _Gather.apply(query, padded.queries).split(
        [block.shape[0] * block.shape[1] for block in padded.blocks]
    )
    sizes = [block.shape[0] * sum(block.shape[1:]) for block in padded.blocks]
    keys, values = (_Gather.apply(tensor, padded.keys).split(sizes) for tensor in (key, value))
    parts = []
    for block, *tensors in zip(padded.blocks, queries, keys, values, strict=True):
        q, k, v = (t.unflatten(0, (block.shape[0], -1)).transpose(1, 2) for t in tensors)
        out = suffix_block_attention(
            q, k, v, absent=block.absent, scale=scale, window=window, softcap=softcap
        )  # [B, H, L, D]
        parts.append(out.transpose(1, 2).flatten(0, 1))  # [B*L, H, D]
    return _Gather.apply(torch.cat(parts), padded.places)
