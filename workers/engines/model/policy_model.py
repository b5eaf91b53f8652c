"""Causal language model that returns log-probabilities of a packed batch.

A `PackedModel` whose head is a `ChunkedHead`: tokens in, per-token log-probabilities and entropies
out; logits exist nowhere. Runs in the ranks of learner and reference. Does not generate.

Legend: N tokens of a packed batch, S sequences, n tokens of it that this rank computes
(`PackedModel`), M tokens of those whose next token trains; where siblings share a prefix, M trained
tokens.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from workers.data.images.packed import PackedImages
from workers.data.images.settings import ImageSettings
from workers.data.packing import PackedBatch
from workers.data.shared_prefixes import SharedPrefixes
from workers.engines.model.attention import VARLEN_SDPA, check_attention
from workers.engines.model.chunked_head import ChunkedHead
from workers.engines.model.families.logits import logit_scale, logit_softcap
from workers.engines.model.families.model_folder import check_model_folder, read_model
from workers.engines.model.lora import adapter_disabled, adapter_name, attach_lora
from workers.engines.model.lora_settings import LoraSettings
from workers.engines.model.packed_model import PackedModel
from workers.engines.model.vision.support import supported_images


class PolicyModel(PackedModel):
    """Policy: `forward(tokens, position_ids, cu_seqlens, loss_mask)` -> log-probs, entropies [N].

    Args:
        model: any transformers causal LM with full or sliding attention layers.
        attention: a name of `attention.ATTENTION_NAMES`.
        autocast: dtype of the matrix products where it is not that of the weights.
        head_chunk: rows of logits held at a time; None leaves it to `head_rows`.
        sequence_group: ranks that share every batch, or None.
        longest: tokens of the run's longest sequence, see `PackedModel`.
        adapter: trains instead of the model's own weights, which are frozen; None trains those.
        known_ids: ids from 0 on that can be sampled: log-probs are those of the rest left out, as
            the engines' are; None where the head has no other.
        images: settings of the pixels of a vision-language model; None for others.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        attention: str = VARLEN_SDPA,
        autocast: torch.dtype | None = None,
        head_chunk: int | None = None,
        sequence_group: dist.ProcessGroup | None = None,
        longest: int | None = None,
        adapter: LoraSettings | None = None,
        known_ids: int | None = None,
        images: ImageSettings | None = None,
    ) -> None:
        super().__init__(
            model,
            attention=attention,
            autocast=autocast,
            sequence_group=sequence_group,
            longest=longest,
            images=images,
        )
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(model).__name__} has no output embedding: not a causal LM")
        config = model.config.get_text_config()
        model.set_output_embeddings(
            ChunkedHead(
                head.weight,
                getattr(head, "bias", None),
                scale=logit_scale(config),
                softcap=logit_softcap(config),
                chunk_rows=head_chunk,
            )
        )
        model.get_output_embeddings().known_ids = known_ids
        self.adapter = adapter
        if adapter is not None:
            attach_lora(model, adapter)

    def forward(
        self,
        tokens: Tensor,  # [N] int64
        position_ids: Tensor,  # [N] int64
        cu_seqlens: Tensor,  # [S+1] int32
        loss_mask: Tensor,  # [N] bool
        temperature: float = 1.0,
        entropy: bool = False,
        prefixes: SharedPrefixes | None = None,
        images: PackedImages | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute log-probs and entropies [N] float32, zero where `loss_mask` is False.

        Element i is log p(token i | earlier tokens of its sequence). A batch with nothing to
        train gives zeros that still reach every parameter, so ZeRO's collectives all happen.
        """
        with self.mixed_precision(tokens):
            hidden = self.hidden_states(
                tokens, position_ids, cu_seqlens, prefixes, images
            )  # [n, H]
            if prefixes is not None:
                return self._score_shared(hidden, tokens, loss_mask, prefixes, temperature, entropy)
            return self._score(hidden, tokens, loss_mask, temperature, entropy)

    def _score(
        self, hidden: Tensor, tokens: Tensor, loss_mask: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        # The token after each, also where that is another rank's. A mask begins with False, so
        # the last token predicts none.
        next_tokens, predicts = self.own(tokens.roll(-1)), self.own(loss_mask.roll(-1))  # [n]
        rows = predicts.nonzero()[:, 0]  # [M]
        head = self.model.get_output_embeddings()
        picked, picked_entropy = head(
            hidden.index_select(0, rows), next_tokens[rows], temperature, entropy
        )

        def at_predicted(values: Tensor) -> Tensor:
            """Move values from the tokens that predict [M] to the tokens predicted [N]."""
            laid = values.new_zeros(predicts.shape[0]).index_copy(0, rows, values)  # [n]
            return self.whole(laid, tokens.shape[0]).roll(1)

        logprobs = at_predicted(picked)
        return logprobs, None if picked_entropy is None else at_predicted(picked_entropy)

    def _score_shared(
        self,
        hidden: Tensor,
        tokens: Tensor,
        loss_mask: Tensor,
        prefixes: SharedPrefixes,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        trained = loss_mask.nonzero()[:, 0]  # [M]
        picked, picked_entropy = self.model.get_output_embeddings()(
            hidden.index_select(0, self.before(trained, prefixes)),
            tokens[trained],
            temperature,
            entropy,
        )
        zeros = picked.new_zeros(tokens.shape[0])  # [N]
        logprobs = zeros.index_copy(0, trained, picked)
        if picked_entropy is None:
            return logprobs, None
        return logprobs, zeros.index_copy(0, trained, picked_entropy)

    def packed_outputs(self, batch: PackedBatch) -> Tensor:
        """See `PackedModel`: the log-probs [N], of all ids."""
        with self.all_ids():
            logprobs, _ = self.forward(
                batch.tokens,
                batch.position_ids,
                batch.cu_seqlens,
                batch.position_ids > 0,
                prefixes=batch.prefixes,
                images=batch.images,
            )
        return logprobs

    @contextlib.contextmanager
    def all_ids(self) -> Iterator[None]:
        """Let the head, inside the block, count the ids that no text has, as prompts' scores do."""
        head = self.model.get_output_embeddings()
        known, head.known_ids = head.known_ids, None
        try:
            yield
        finally:
            head.known_ids = known

    def plain_outputs(self, tokens: Tensor, images: PackedImages | None = None) -> Tensor:
        """See `PackedModel`: the log-probs [L] of the model's own logits, 0 for the first token."""
        shown: dict[str, Tensor] = {}
        if images is not None and self.vision is not None:
            shown = self.vision.layout.own_arguments(images)
        with self.plain_attention():
            output = self.model(input_ids=tokens[None], use_cache=False, **shown)
        logits = output.logits[0]  # [L, V]
        log_p = logits[:-1].float().log_softmax(dim=-1)
        picked = log_p.gather(1, tokens[1:, None])[:, 0]  # [L-1]
        return torch.cat([picked.new_zeros(1), picked])

    def hf_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate as `PackedModel` does; with an adapter, over the adapter's matrices alone."""
        named = super().hf_named_parameters()
        return ((n, p) for n, p in named if self.adapter is None or adapter_name(n) is not None)

    def enable_gradient_checkpointing(self, *, reentrant: bool) -> None:
        """See `PackedModel`."""
        super().enable_gradient_checkpointing(reentrant=reentrant)
        if reentrant and self.adapter is not None:
            # A reentrant block has no gradient unless an input wants one, and what frozen
            # embeddings put out does not.
            self.model.enable_input_require_grads()

    @contextlib.contextmanager
    def base(self) -> Iterator[None]:
        """Make the policy, inside the block, the model that its adapter was attached to.

        Raises:
            ValueError: without an adapter that model is gone once the policy has trained.
        """
        if self.adapter is None:
            raise ValueError("this policy has no adapter to switch off: score a reference policy")
        with adapter_disabled(self.model):
            yield


def load_policy_model(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    attention: str = VARLEN_SDPA,
    autocast: torch.dtype | None = None,
    head_chunk: int | None = None,
    sequence_group: dist.ProcessGroup | None = None,
    longest: int | None = None,
    adapter: LoraSettings | None = None,
    known_ids: int | None = None,
) -> PolicyModel:
    """Read a Hugging Face model folder; the other arguments are those of `PolicyModel`.

    Weights become `dtype` and are read onto `device`, tensor by tensor; None: the host. Under
    ZeRO-3 initialisation (an `HfDeepSpeedConfig` that is alive) each is partitioned as it is read.

    Raises:
        ValueError: no such folder, no configuration, no weights, an attention that cannot run,
            heads that the ranks of the group cannot divide, or a family that is not supported.
    """
    check_attention(attention)
    check_model_folder(folder)
    images = supported_images(folder)
    kind = AutoModelForCausalLM if images is None else AutoModelForImageTextToText
    model = read_model(kind, folder, dtype=dtype, device=device)
    return PolicyModel(
        model,
        attention=attention,
        autocast=autocast,
        head_chunk=head_chunk,
        sequence_group=sequence_group,
        longest=longest,
        adapter=adapter,
        known_ids=known_ids,
        images=images,
    )
