"""A causal language model that answers with log-probabilities of a packed batch.

A Hugging Face model underneath, its head replaced by `ChunkedHead` and its attention by one that
keeps packed sequences apart. Tokens in, per-token log-probabilities and entropies out; logits
exist nowhere. It does not generate, has no key-value cache, and has no dropout: the policy that is
trained must be the policy that is scored.

Legend: N tokens of a packed batch, S sequences, M trained tokens.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from workers.engines.attention import VARLEN_SDPA, attention_arguments, check_attention
from workers.engines.chunked_head import ChunkedHead

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


class PolicyModel(nn.Module):
    """`forward(tokens, position_ids, cu_seqlens, loss_mask)` -> log-probs [N], entropies [N].

    Args:
        model: any transformers causal LM with full or sliding attention layers.
        attention: a name of `attention.ATTENTION_NAMES`.
        autocast: dtype of the matrix products where it is not that of the weights.
        head_chunk: rows of logits held at a time; None keeps a chunk at 64 MiB.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        attention: str = VARLEN_SDPA,
        autocast: torch.dtype | None = None,
        head_chunk: int | None = None,
    ) -> None:
        super().__init__()
        check_attention(attention)
        _check_layers(model)
        model.set_attn_implementation(attention)
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(model).__name__} has no output embedding: not a causal LM")
        softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        model.set_output_embeddings(
            ChunkedHead(
                head.weight, getattr(head, "bias", None), softcap=softcap, chunk_rows=head_chunk
            )
        )
        _without_dropout(model)
        self.model = model
        self.attention = attention
        self.autocast = autocast

    def forward(
        self,
        tokens: Tensor,  # [N] int64
        position_ids: Tensor,  # [N] int64
        cu_seqlens: Tensor,  # [S+1] int32
        loss_mask: Tensor,  # [N] bool
        temperature: float = 1.0,
        entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs and entropies [N] float32, zero where `loss_mask` is False.

        Element i is log p(token i | earlier tokens of its sequence). A batch with nothing to
        train gives zeros that still reach every parameter, so ZeRO's collectives all happen.
        """
        # Inside the module: DeepSpeed switches an autocast off that surrounds its engine.
        enabled = self.autocast is not None
        with torch.autocast(tokens.device.type, self.autocast, enabled=enabled):
            return self._score(tokens, position_ids, cu_seqlens, loss_mask, temperature, entropy)

    def _score(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        loss_mask: Tensor,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        backbone = self.model.get_decoder()
        hidden = backbone(
            input_ids=tokens[None],
            position_ids=position_ids[None],
            use_cache=False,
            **attention_arguments(self.attention, cu_seqlens),
        ).last_hidden_state[0]  # [N, H]
        trained = loss_mask.nonzero()[:, 0]  # [M]
        head = self.model.get_output_embeddings()
        picked, picked_entropy = head(
            hidden.index_select(0, trained - 1), tokens[trained], temperature, entropy
        )
        zeros = picked.new_zeros(tokens.shape[0])
        logprobs = zeros.index_copy(0, trained, picked)
        if picked_entropy is None:
            return logprobs, None
        return logprobs, zeros.index_copy(0, trained, picked_entropy)

    def hf_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under the names of a Hugging Face checkpoint; a tied weight comes once."""
        return self.model.named_parameters()

    def enable_gradient_checkpointing(self, *, reentrant: bool) -> None:
        """Keep layer inputs only and recompute the rest in the backward pass."""
        self.model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": reentrant}
        )
        self.train()


def load_policy_model(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    attention: str = VARLEN_SDPA,
    autocast: torch.dtype | None = None,
    head_chunk: int | None = None,
) -> PolicyModel:
    """Read a Hugging Face model folder.

    Under ZeRO-3 initialisation (an `HfDeepSpeedConfig` that is alive) every weight is partitioned
    as it is read.

    Raises:
        ValueError: no such folder, no configuration, no weights, or an attention that cannot run.
    """
    check_attention(attention)
    check_model_folder(folder)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, local_files_only=True)
    return PolicyModel(model, attention=attention, autocast=autocast, head_chunk=head_chunk)


def check_model_folder(folder: str | Path) -> None:
    """Raise ValueError unless `folder` holds a readable configuration and safetensors weights."""
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"model folder {path} does not exist: give a Hugging Face model folder")
    if not (path / "config.json").is_file():
        raise ValueError(f"model folder {path} has no config.json: not a Hugging Face model")
    try:
        json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise ValueError(
            f"{path / 'config.json'} is not JSON ({error}): export it again"
        ) from error
    if not any((path / name).is_file() for name in WEIGHT_FILES):
        raise ValueError(
            f"model folder {path} has no weights ({' or '.join(WEIGHT_FILES)}): "
            "save the model with safetensors there"
        )


def model_shape(folder: str | Path) -> tuple[int, int]:
    """Layers and hidden size of the model in `folder`, for the cost of a sequence."""
    config: Any = AutoConfig.from_pretrained(str(folder), local_files_only=True).get_text_config()
    return config.num_hidden_layers, config.hidden_size


def _check_layers(model: PreTrainedModel) -> None:
    """Layer kinds that packed attention would compute wrongly are refused by name."""
    config: Any = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    unknown = sorted(kinds - {"full_attention", "sliding_attention"})
    if getattr(config, "attention_chunk_size", None):
        unknown.append(f"attention_chunk_size={config.attention_chunk_size}")
    if unknown:
        raise ValueError(
            f"{type(model).__name__} has layers that packed batches do not support: "
            f"{', '.join(unknown)}; use a model with full or sliding attention"
        )


def _without_dropout(model: PreTrainedModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
