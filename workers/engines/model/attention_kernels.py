"""Compute packed attention: with FlashAttention, torch's choice on blocks, or tiles.

FlashAttention, torch's own, takes the flat batch as it lies: no gather, no padding, no mask,
sliding windows included, on a GPU in half precision. Blocks of padded sequences are left to
`scaled_dot_product_attention`. Tiles compute what no kernel of torch does in the precision that is
asked for (windows in float32, soft caps), a strip of query rows at a time, so that memory does not
grow with the square of the length.

Legend: N tokens, B sequences of a block, L its longest, H heads (Hk key-value heads), D head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

HALF = (torch.bfloat16, torch.float16)
# Scores of a tile: 256 MiB in float32.
TILE_ELEMENTS = 1 << 26
# Sequences of this length or more on average are computed one by one where that is faster.
DENSE_TOKENS = 4096
# Up to here two batched products and a softmax beat torch's fused CPU kernel, whose backward pass
# costs 37 ms for bf16 [64, 9, 35, 64] against 6 ms.
PLAIN_LENGTH = 128


def flash_computes(query: Tensor, *, softcap: float | None) -> bool:
    """Return True where `flash_varlen` runs on `query` [..., D]: half precision, from Ampere on."""
    if not query.is_cuda or query.dtype not in HALF or softcap is not None or torch.version.hip:
        return False
    size = query.shape[-1]
    # Between 192 and 256 some devices have no backward pass.
    fits = size % 8 == 0 and (size <= 192 or size == 256)
    return fits and torch.cuda.get_device_capability(query.device) >= (8, 0)


def flash_varlen(
    query: Tensor,  # [N, H, D]
    key: Tensor,  # [N, Hk, D]
    value: Tensor,  # [N, Hk, D]
    *,
    cu_seqlens: Tensor,  # [S+1] int32
    longest: int,
    scale: float,
    window: int | None,
    cu_keys: Tensor | None = None,  # [S+1] int32
    longest_key: int | None = None,
) -> Tensor:
    """Compute causal attention within each sequence of a flat batch: [N, H, D].

    With `cu_keys` and `longest_key` a sequence has more keys than queries, and its queries are the
    last of them.

    The operator that `torch.nn.attention.varlen` wraps: it is differentiable by itself and takes
    fewer key-value heads, and its leading arguments are those of every torch that we support,
    which the wrapper's are not. `longest` is the longest sequence's tokens; `window` counts the
    tokens that a token sees, itself included, and None shows it all before it.
    """
    longest_key = longest if longest_key is None else longest_key
    windowed = window is not None and window < longest_key
    out: Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        cu_seqlens,
        cu_seqlens if cu_keys is None else cu_keys,
        longest,
        longest_key,
        0.0,  # dropout
        not windowed,  # causal; a window says so by its right end
        False,  # no debug mask
        scale=scale,
        window_size_left=window - 1 if window is not None and windowed else None,
        window_size_right=0 if windowed else None,
    )[0]
    return out


def dense_is_faster(query: Tensor, lengths: Sequence[int], *, window: int | None) -> bool:
    """Return True where `dense_varlen` beats `flash_varlen` on `query` [N, H, D].

    On a Hopper cuDNN's kernel, which takes no packed batch, needs 0.56 of FlashAttention's time on
    one sequence of 16,384 tokens, 0.76 on four of 4,096, but 1.25 on eight of 2,048 (forward and
    backward, bfloat16, 16 heads on 8 of 128; H100, torch 2.11).
    """
    if window is not None and window < max(lengths):
        return False
    long = sum(lengths) >= DENSE_TOKENS * len(lengths)
    return long and torch.cuda.get_device_capability(query.device) >= (9, 0)


def dense_varlen(
    query: Tensor,  # [N, H, D]
    key: Tensor,  # [N, Hk, D]
    value: Tensor,  # [N, Hk, D]
    *,
    lengths: Sequence[int],
    scale: float,
) -> Tensor:
    """Compute causal attention of a flat batch one sequence at a time: [N, H, D]."""
    grouped = query.shape[1] != key.shape[1]
    parts = []
    for tensors in zip(*(t.split(list(lengths)) for t in (query, key, value)), strict=True):
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in tensors)  # [1, H, L, D]
        out = F.scaled_dot_product_attention(
            q, k, v, scale=scale, is_causal=True, enable_gqa=grouped
        )
        parts.append(out[0].transpose(0, 1))
    # Some models take a view of it: its heads lie beside each other.
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)


def block_attention(
    q: Tensor,  # [B, H, L, D]
    k: Tensor,  # [B, Hk, L, D]
    v: Tensor,  # [B, Hk, L, D]
    *,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    """Compute the causal attention of one block: [B, H, L, D]."""
    length, grouped = q.shape[2], q.shape[1] != k.shape[1]
    windowed = sliding_window is not None and sliding_window < length
    on_cpu = q.device.type == "cpu"
    plain = softcap is not None or (on_cpu and length <= PLAIN_LENGTH)
    if not windowed and not plain:
        # Off the fused half-precision kernels, grouped heads mean scores [B, H, L, L] in memory.
        if grouped and (on_cpu or q.dtype not in HALF):
            k, v = (_repeat_heads(tensor, q.shape[1]) for tensor in (k, v))
            grouped = False
        return F.scaled_dot_product_attention(
            q, k, v, scale=scale, is_causal=True, enable_gqa=grouped
        )
    k, v = (_repeat_heads(tensor, q.shape[1]) for tensor in (k, v))
    if plain or not on_cpu:
        return tiled_attention(
            q,
            k,
            v,
            scale=scale,
            window=sliding_window,
            softcap=softcap,
            tile_elements=None if on_cpu else TILE_ELEMENTS,
        )
    seen = visible(length, length, 0, window=sliding_window, device=q.device)  # [L, L]
    return F.scaled_dot_product_attention(q, k, v, scale=scale, attn_mask=seen)


def suffix_block_attention(
    q: Tensor,  # [B, H, L, D]
    k: Tensor,  # [B, Hk, K, D]
    v: Tensor,  # [B, Hk, K, D]
    *,
    absent: Tensor | None,  # [B, 1, 1, K] bool
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Compute the causal attention of a block whose queries are its last L of K keys: [B, H, L, D].

    No query sees the keys that are `absent`.
    """
    length, num_keys = q.shape[2], k.shape[2]
    k, v = (_repeat_heads(tensor, q.shape[1]) for tensor in (k, v))
    on_cpu = q.device.type == "cpu"
    if softcap is not None or (on_cpu and num_keys <= PLAIN_LENGTH):
        return tiled_attention(
            q,
            k,
            v,
            scale=scale,
            window=window,
            softcap=softcap,
            tile_elements=None if on_cpu else TILE_ELEMENTS,
            absent=absent,
        )
    seen = visible(length, num_keys, num_keys - length, window=window, device=q.device)  # [L, K]
    if absent is not None:
        seen = seen & ~absent  # [B, 1, L, K]
    return F.scaled_dot_product_attention(q, k, v, scale=scale, attn_mask=seen)


def _repeat_heads(tensor: Tensor, num_heads: int) -> Tensor:
    """Repeat key-value heads, [B, Hk, L, D] to [B, H, L, D]; neighbours share one."""
    return tensor.repeat_interleave(num_heads // tensor.shape[1], dim=1)


def tiled_attention(
    query: Tensor,  # [B, H, L, D]
    key: Tensor,  # [B, H, K, D]
    value: Tensor,  # [B, H, K, D]
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    tile_elements: int | None = TILE_ELEMENTS,
    absent: Tensor | None = None,  # [B, 1, 1, K] bool
) -> Tensor:
    """Compute the causal attention of one block by plain scores: [B, H, L, D].

    The queries are the last L of K keys. The scores are computed again in the backward pass.

    `window` counts the tokens that a token sees, itself included; `softcap` is the `c` of
    `c * tanh(scores / c)`; at most `tile_elements` scores exist at a time, None computes and keeps
    all of them; keys that are `absent` are never seen.
    """
    batch, heads, length, _ = query.shape
    before = key.shape[2] - length
    rows = length
    if tile_elements is not None:
        rows = max(1, tile_elements // (batch * heads * key.shape[2]))
    parts = []
    for first in range(0, length, rows):
        last = min(first + rows, length)
        low = 0 if window is None else max(0, before + first - window + 1)
        places = slice(low, before + last)
        tile = (
            query[:, :, first:last],
            key[:, :, places],
            value[:, :, places],
            before + first - low,
            scale,
            window,
            softcap,
            None if absent is None else absent[..., places],
        )
        if rows >= length:
            return _tile(*tile)
        parts.append(checkpoint(_tile, *tile, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(parts, dim=2)


def _tile(
    query: Tensor,  # [B, H, l, D]
    key: Tensor,  # [B, H, m, D]
    value: Tensor,  # [B, H, m, D]
    offset: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    absent: Tensor | None,  # [B, 1, 1, m]
) -> Tensor:
    """Compute the attention of query rows, the first being key number `offset`: [B, H, l, D]."""
    scores = (query * scale) @ key.transpose(2, 3)  # [B, H, l, m]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    hidden = ~visible(query.shape[2], key.shape[2], offset, window=window, device=query.device)
    if absent is not None:
        hidden = hidden | absent  # [B, 1, l, m]
    scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


def visible(
    num_queries: int, num_keys: int, offset: int, *, window: int | None, device: torch.device
) -> Tensor:
    """Return the keys that each query sees [l, m] bool, where query 0 is key number `offset`.

    One byte a pair: distances in int64 would be 8 GiB at 32k tokens.
    """
    seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril_(offset)
    return seen if window is None else seen.triu_(offset - window + 1)
