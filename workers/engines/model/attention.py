"""Attention over packed sequences that cannot see across them, by name.

`varlen_sdpa` runs everywhere torch does. On a GPU in half precision it is torch's own
FlashAttention, on the flat batch; elsewhere `scaled_dot_product_attention` on padded blocks
(`sequence_attention.py`). Where siblings share a prefix, their suffixes see its keys
(`suffix_attention.py`). `flash_attention_2` is transformers' own, gets the batch through its
variable-length arguments, and shares nothing.

Runs in the ranks of learner, reference and critic. Not a cache: packed batches are scored and
trained, never generated from.

Legend: N computed tokens, S sequences, H heads (Hk key-value heads), D head size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.utils import is_flash_attn_2_available

from workers.data.shared_prefixes import SharedPrefixes
from workers.engines.model.attention_kernels import flash_computes
from workers.engines.model.sequence_attention import (
    SequenceBlocks,
    attend_sequences,
    sequence_blocks,
)
from workers.engines.model.suffix_attention import Suffixes, attend_suffixes

VARLEN_SDPA = "varlen_sdpa"
ATTENTION_NAMES = (VARLEN_SDPA, "flash_attention_2")


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
    suffixes: Suffixes | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute exact causal attention within each packed sequence; output [1, N, H, D].

    With `suffixes` the N tokens are prefixes, which `sequence_blocks` divides, and then the
    suffixes that continue them.

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
    kernel: dict[str, Any] = {
        "flash": flash_computes(flat[0], softcap=softcap),
        "scale": scale,
        "window": sliding_window,
        "softcap": softcap,
    }
    if suffixes is None:
        return attend_sequences(flat, sequence_blocks, **kernel).unsqueeze(0), None
    before = [tensor[: suffixes.first] for tensor in flat]
    parts = [attend_sequences(before, sequence_blocks, **kernel)]
    if len(suffixes):
        parts.append(attend_suffixes(flat, suffixes, **kernel))
    return torch.cat(parts).unsqueeze(0), None


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


def attention_arguments(
    name: str, cu_seqlens: Tensor, prefixes: SharedPrefixes | None = None
) -> dict[str, Any]:
    """Return the arguments that the model needs besides tokens and positions.

    Args:
        name: one of ATTENTION_NAMES.
        cu_seqlens: [S+1] int32.
        prefixes: layout of a batch whose siblings share prefixes.

    Raises:
        ValueError: the attention cannot compute shared prefixes.
    """
    if prefixes is not None:
        if name != VARLEN_SDPA:
            raise ValueError(
                f"attention {name!r} cannot share prefixes: choose {VARLEN_SDPA}, or set "
                "learner.shared_prefix=false"
            )
        return {
            "sequence_blocks": sequence_blocks(prefixes.cu_prefixes),
            "suffixes": Suffixes(prefixes),
        }
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
