"""Ulysses sequence parallelism (2309.14509): neighbouring ranks share every packed micro-batch.

Of a batch of N tokens each of P ranks runs n = ceil(N / P) through the model; a dummy sequence that
trains nothing fills the last part up. Attention alone needs all tokens: there every rank trades its
tokens of all heads for all tokens of its heads (DeepSpeed's `UlyssesSPAttentionHF`, around our
attention of packed sequences), and back. Log-probs leave the model whole, [N] on every rank,
because a loss may need whole sequences.

Runs in the learner's ranks.

What is DeepSpeed's and what is not (0.19.8, torch 2.13, measured on gloo, which has all-to-all):
* The attention module is used as it is. With `varlen_sdpa` inside, hidden states equal one rank's
  to the bit and gradients to 2e-7, also with fewer key-value heads than ranks, which it repeats.
* `register_with_transformers` is not. It replaces an attention function of transformers for the
  whole process, keeps one set of groups per process, and with its `mpu` DeepSpeed divides
  gradients by another number than the ranks it sums over. ZeRO sees plain ranks here, and the
  gradient is the plain sum over all of them.
* `UlyssesSPDataLoaderAdapter` is not. It shards padded batches with labels; here all ranks have the
  packed batch already, and the last hidden state of a part predicts the first token of the next.

It does not divide weights (ZeRO does), and refuses models whose heads the ranks do not divide.

Legend: N tokens of a micro-batch, S sequences, P ranks that share it, n tokens of one rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from workers.engines.model.attention import varlen_sdpa
from workers.engines.model.heads import check_heads

if TYPE_CHECKING:
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

ULYSSES = "ulysses_varlen_sdpa"


class SequenceParallel:
    """Place of this rank among the ranks that share its micro-batches.

    Args:
        config: transformers' text configuration: heads and their size.
        group: the P ranks; all of them are called with the same batch.

    Raises:
        ValueError: P ranks cannot divide the heads.
    """

    def __init__(self, config: Any, group: dist.ProcessGroup) -> None:
        # A model that shares no batches runs where there is no DeepSpeed.
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

        num_heads = config.num_attention_heads
        num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        check_heads(num_heads, num_kv_heads, self.size)
        self._group = group
        self._exchange = UlyssesSPAttentionHF(
            attn=varlen_sdpa,
            batch_size=1,
            attn_head_count=num_heads,
            attn_head_size=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
            kv_head_count=num_kv_heads,
            num_hidden_layers=config.num_hidden_layers,
            process_group=group,
            seq_length_is_variable=True,
        )

    def padded_ends(self, cu_seqlens: Tensor, num_tokens: int) -> Tensor:
        """Extend `cu_seqlens` [S+1] to P * n tokens: the padding is a sequence of its own."""
        padding = -num_tokens % self.size
        if not padding:
            return cu_seqlens
        return torch.cat([cu_seqlens, cu_seqlens.new_tensor([num_tokens + padding])])

    def own(self, values: Tensor) -> Tensor:
        """Take this rank's n of N values; padding is zero."""
        padded = F.pad(values, (0, -values.shape[0] % self.size))
        return padded.chunk(self.size)[self.rank]

    def whole(self, values: Tensor, num_tokens: int) -> Tensor:
        """Join the values [n] of all ranks end to end, without the padding: [N]."""
        gathered: Tensor = _Gather.apply(values, self)
        return gathered[:num_tokens]

    @property
    def attention_arguments(self) -> dict[str, Any]:
        """Arguments of the model besides those of `varlen_sdpa`."""
        return {"exchange": self._exchange}


class _Gather(torch.autograd.Function):
    """All-gather from [n] of every rank to [P * n] on every rank.

    All ranks compute the same loss from the result, so each takes the gradient of its own part and
    nothing is added up: over all ranks every token then counts once.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, shared: SequenceParallel) -> Tensor:
        length = values.shape[0]
        ctx.mine = slice(shared.rank * length, (shared.rank + 1) * length)
        whole = values.new_empty(shared.size * length)
        dist.all_gather_into_tensor(whole, values.contiguous(), group=shared._group)
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.mine], None


def ulysses_varlen_sdpa(
    module: nn.Module,
    query: Tensor,  # [1, H, n, D]
    key: Tensor,  # [1, Hk, n, D]
    value: Tensor,  # [1, Hk, n, D]
    attention_mask: Tensor | None,
    *,
    exchange: UlyssesSPAttentionHF | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Run `varlen_sdpa` over all N tokens for this rank's share of the heads; output [1, n, H * D].

    Raises:
        ValueError: no `exchange` was given.
    """
    if exchange is None:
        raise ValueError(f"{ULYSSES} needs the model called with exchange=...")
    return exchange(module, query, key, value, attention_mask, **kwargs)


# No mask function is registered under the name: transformers then builds no mask at all.
AttentionInterface.register(ULYSSES, ulysses_varlen_sdpa)
