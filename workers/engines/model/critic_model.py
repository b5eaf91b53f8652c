"""Decoder with a value head: one value per token of a packed batch.

A `PackedModel` without a language-model head and with a float32 scalar one. Values are aligned like
log-probabilities: the value at token i is V(state before token i is sampled), which only earlier
tokens of its sequence determine, so it is read from the hidden state of token i - 1.

The head starts at zero. Every value is then 0 in the first step, so the first advantages are plain
discounted returns instead of returns minus noise, and value clipping starts from 0; the head's own
gradient is not zero, and from the second update on the backbone has one too.

Runs in the critic's ranks. Computes no loss.

Legend: N tokens of a packed batch, n of them computed, S sequences, M trained tokens, H hidden
size.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from workers.data.images.packed import PackedImages
from workers.data.packing import PackedBatch
from workers.data.shared_prefixes import SharedPrefixes
from workers.engines.model.attention import VARLEN_SDPA, check_attention
from workers.engines.model.families.model_folder import check_model_folder, read_model
from workers.engines.model.packed_model import PackedModel
from workers.engines.model.vision.support import check_critic


class ValueHead(nn.Linear):
    """Scalar head that computes in float32, also where its weights were rounded to 16 bits."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute the values [M, 1] of hidden states [M, H]."""
        return nn.functional.linear(hidden.float(), self.weight.float(), self.bias.float())


class CriticModel(PackedModel):
    """Value model: `forward(tokens, position_ids, cu_seqlens, loss_mask)` -> values [N].

    Args:
        model: the backbone.
        attention: a name of `attention.ATTENTION_NAMES`.
        autocast: dtype of the backbone's matrix products where it is not that of the weights.
        longest: tokens of the run's longest sequence, see `PackedModel`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        attention: str = VARLEN_SDPA,
        autocast: torch.dtype | None = None,
        longest: int | None = None,
    ) -> None:
        super().__init__(model, attention=attention, autocast=autocast, longest=longest)
        width = model.config.get_text_config().hidden_size
        self.value_head = ValueHead(width, 1, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(
        self,
        tokens: Tensor,  # [N] int64
        position_ids: Tensor,  # [N] int64
        cu_seqlens: Tensor,  # [S+1] int32
        loss_mask: Tensor,  # [N] bool
        prefixes: SharedPrefixes | None = None,
    ) -> Tensor:
        """Compute the values [N] float32, zero where `loss_mask` is False.

        A batch with nothing to train gives zeros that still reach every parameter, so ZeRO's
        collectives all happen.
        """
        with self.mixed_precision(tokens):
            hidden = self.hidden_states(tokens, position_ids, cu_seqlens, prefixes)  # [n, H]
        trained = loss_mask.nonzero()[:, 0]  # [M]
        before = hidden.index_select(0, self.before(trained, prefixes)).float()  # [M, H]
        with torch.autocast(tokens.device.type, enabled=False):
            picked = self.value_head(before)[:, 0]  # [M]
        return picked.new_zeros(tokens.shape[0]).index_copy(0, trained, picked)

    def packed_outputs(self, batch: PackedBatch) -> Tensor:
        """See `PackedModel`: the hidden states [N, H], which any value is a function of."""
        with self.mixed_precision(batch.tokens):
            hidden = self.hidden_states(
                batch.tokens, batch.position_ids, batch.cu_seqlens, batch.prefixes
            )
        return _scaled(hidden if batch.prefixes is None else hidden[batch.prefixes.places])

    def plain_outputs(self, tokens: Tensor, images: PackedImages | None = None) -> Tensor:
        """See `PackedModel`: the backbone's own hidden states [L, H]; a critic reads no images."""
        del images
        with self.plain_attention():
            hidden = self.model(input_ids=tokens[None], use_cache=False).last_hidden_state
        return _scaled(hidden[0])

    def hf_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over what trains of the backbone (`model.`) and of the head (`value_head.`)."""
        unread = self.unread()
        return ((name, p) for name, p in self.named_parameters() if id(p) not in unread)


def _scaled(hidden: Tensor) -> Tensor:
    """Divide hidden states [N, H] by their root mean square: comparable between models."""
    return hidden.float() / hidden.float().square().mean(dim=-1, keepdim=True).sqrt()


def load_critic_model(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    attention: str = VARLEN_SDPA,
    autocast: torch.dtype | None = None,
    longest: int | None = None,
) -> CriticModel:
    """Read the backbone of a Hugging Face model folder, without a head that the folder may have.

    `dtype` and `device` are those of `load_policy_model`.

    Raises:
        ValueError: no such folder, no configuration, no weights, an attention that cannot
            run, or a vision-language model.
    """
    check_attention(attention)
    check_model_folder(folder)
    check_critic(folder)
    model = read_model(AutoModel, folder, dtype=dtype, device=device)
    return CriticModel(model, attention=attention, autocast=autocast, longest=longest)
