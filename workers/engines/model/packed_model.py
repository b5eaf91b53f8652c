"""Transformers model that runs on packed batches: hidden states without padding.

Base of policy and critic: attention that keeps packed sequences apart, an autocast that DeepSpeed
leaves on, no dropout (what is trained must be what is scored), no key-value cache. The use of the
hidden states is the subclasses' business. Where ranks share their batches, each has the hidden
states of its own part of the tokens; `own` and `whole` lead from a batch to that part and back.

Runs in the ranks of learner, reference and critic. Computes no loss and generates nothing.

Legend: N tokens of a packed batch, S sequences, H hidden size, n tokens that this rank computes (N
where neither ranks share the batch nor siblings a prefix), M trained tokens.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from workers.data.images.packed import PackedImages
from workers.data.images.settings import ImageSettings
from workers.data.packing import PackedBatch
from workers.data.shared_prefixes import SharedPrefixes
from workers.engines.model.attention import VARLEN_SDPA, attention_arguments, check_attention
from workers.engines.model.families.layers import check_layers, remove_dropout, set_attention
from workers.engines.model.families.positions import fix_positions
from workers.engines.model.sequence_parallel import ULYSSES, SequenceParallel
from workers.engines.model.vision.layouts import vision_layout
from workers.engines.model.vision.names import frozen_names
from workers.engines.model.vision.tower import VisionTower


class PackedModel(nn.Module, ABC):
    """Decoder over packed batches: `hidden_states(tokens, position_ids, cu_seqlens)` -> [n, H].

    Args:
        model: any transformers decoder with full or sliding attention layers.
        attention: a name of `attention.ATTENTION_NAMES`.
        autocast: dtype of the matrix products where it is not that of the weights.
        sequence_group: ranks that share every batch, each of them called with all of it; None
            where this rank computes its batches alone.
        longest: tokens of the run's longest sequence, see `fix_positions`; None: the context.
        images: settings of the pixels of a vision-language model; None for others.

    Raises:
        ValueError: the model cannot be computed on packed batches, or not by ranks that share them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        attention: str = VARLEN_SDPA,
        autocast: torch.dtype | None = None,
        sequence_group: dist.ProcessGroup | None = None,
        longest: int | None = None,
        images: ImageSettings | None = None,
    ) -> None:
        super().__init__()
        check_attention(attention)
        check_layers(model)
        if images is not None and sequence_group is not None:
            raise ValueError(
                f"learner.sequence_parallel_size above 1 with {type(model).__name__}: ranks that "
                "share a batch do not divide images; set learner.sequence_parallel_size=1"
            )
        self.vision = None if images is None else VisionTower(vision_layout(model, images))
        self._reentrant = False  # gradient checkpointing
        self._shared: SequenceParallel | None = None
        if sequence_group is not None:
            self._shared = SequenceParallel(model.config.get_text_config(), sequence_group)
        self._packed_attention = attention if self._shared is None else ULYSSES
        set_attention(model, self._packed_attention, vision=self.vision is not None)
        remove_dropout(model)
        fix_positions(model, longest)
        self.model = model
        self.attention = attention
        self.autocast = autocast

    def hidden_states(
        self,
        tokens: Tensor,  # [N] int64
        position_ids: Tensor,  # [N] int64
        cu_seqlens: Tensor,  # [S+1] int32
        prefixes: SharedPrefixes | None = None,
        images: PackedImages | None = None,
    ) -> Tensor:
        """Compute the last layer's output at every token of this rank's part [n, H].

        With `prefixes` the part is the n tokens that they say to compute, in their order.

        Raises:
            ValueError: the attention, or ranks that share a batch, cannot share prefixes; or the
                model takes no images.
        """
        extras: dict[str, Any] = {}
        if images is not None and images.positions is not None:
            position_ids = images.positions  # [3, N]
        if prefixes is not None:
            if self._shared is not None:
                raise ValueError(
                    "ranks that share a batch (sequence_parallel_size above 1) cannot share "
                    "prefixes: set learner.shared_prefix=false"
                )
            tokens, position_ids = tokens[prefixes.computed], position_ids[..., prefixes.computed]
        if self._shared is not None:
            cu_seqlens = self._shared.padded_ends(cu_seqlens, tokens.shape[0])
            extras = self._shared.attention_arguments
        if self.vision is not None:
            embedded = self.vision.embeddings(self.model, tokens, images, prefixes)
            read = {"inputs_embeds": embedded[None], "position_ids": position_ids[..., None, :]}
        elif images is not None:
            raise ValueError(
                f"{type(self.model).__name__} takes no images here, and a row shows one: use a "
                "vision-language model of a supported family, or leave data.image_column null"
            )
        else:
            read = {
                "input_ids": self.own(tokens)[None],
                "position_ids": self.own(position_ids)[None],
            }
        hidden: Tensor = self.model.get_decoder()(
            **read,
            use_cache=False,
            **attention_arguments(self.attention, cu_seqlens, prefixes),
            **extras,
        ).last_hidden_state
        return hidden[0]

    def before(self, trained: Tensor, prefixes: SharedPrefixes | None) -> Tensor:
        """Find the hidden state [n] that predicts each of the trained tokens [M].

        It is that of the token before, which may be the last one of a shared prefix. To be called
        where ranks do not share the batch.
        """
        return trained - 1 if prefixes is None else prefixes.places[trained - 1]

    @abstractmethod
    def packed_outputs(self, batch: PackedBatch) -> Tensor:
        """Compute the numbers [N, ...] by which the self-test judges a packed batch."""

    @property
    def shares_prefixes(self) -> bool:
        """True where siblings of a batch may share a prefix."""
        return self.attention == VARLEN_SDPA and self._shared is None

    @abstractmethod
    def plain_outputs(self, tokens: Tensor, images: PackedImages | None = None) -> Tensor:
        """Compute the same numbers [L, ...] of one sequence [L] by the model's own forward pass."""

    @contextlib.contextmanager
    def plain_attention(self) -> Iterator[None]:
        """Give the model, inside the block, the attention that is written out in its own file."""
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            set_attention(self.model, self._packed_attention, vision=self.vision is not None)

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode, in which the model computes the same.

        Whatever transformers draws in train mode (dropout, jitter of routers and of their inputs,
        experts drawn at random) would make what is trained another policy than what is scored. Only
        the layers that a backward pass recomputes ask for the mode.
        """
        super().train(mode)
        for module in self.model.modules():
            module.training = mode and isinstance(module, GradientCheckpointingLayer)
        if self.vision is not None:
            self.vision.set_modes()
        return self

    def own(self, values: Tensor) -> Tensor:
        """Take this rank's part [n] of a value per token [N]; padding is zero."""
        return values if self._shared is None else self._shared.own(values)

    def whole(self, values: Tensor, num_tokens: int) -> Tensor:
        """Join all ranks' parts [n] to one value per token [N], on every rank, with gradient."""
        return values if self._shared is None else self._shared.whole(values, num_tokens)

    def mixed_precision(self, tokens: Tensor) -> torch.autocast:
        """Return the autocast of the forward pass.

        To be entered inside `forward`: DeepSpeed switches off one that surrounds its engine.
        """
        return torch.autocast(tokens.device.type, self.autocast, enabled=self.autocast is not None)

    @contextlib.contextmanager
    def other_rounding(self, engine_dtype: torch.dtype) -> Iterator[None]:
        """Let the model, inside the block, round otherwise than it does: see `PolicyEngine.probe`.

        Weights that are rounded for the engine stay rounded, so that nothing but arithmetic
        differs. Where products and the engine have the same 16 bits, only the dtype of all that is
        between the products (the residual stream and the norms) changes, which follows that of the
        embeddings under autocast: to 16 bits where the weights are float32, to float32 where the
        weights have 16 bits. Otherwise the products change to the engine's dtype.
        """
        embeddings = self.model.get_input_embeddings()
        usual, weights = self.autocast, embeddings.weight.dtype
        between = None  # the dtype there, where it changes
        if weights != torch.float32:
            self.autocast, between = weights, torch.float32
        elif usual == engine_dtype:
            between = engine_dtype
        else:
            self.autocast = None if engine_dtype == torch.float32 else engine_dtype
        hooks = []
        if between is not None:
            hooks = [embeddings.register_forward_hook(lambda _, __, output: output.to(between))]
        try:
            yield
        finally:
            self.autocast = usual
            for hook in hooks:
                hook.remove()

    def hf_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over what packed batches read, under stable names; a tied weight comes once.

        These are the parameters that train unless they are frozen, and those that a policy which
        only scores is given.
        """
        unread = self.unread()
        return ((name, p) for name, p in self.model.named_parameters() if id(p) not in unread)

    def unread(self) -> set[int]:
        """Return the ids of the parameters that no packed batch reads, as of an unused tower."""
        parts = () if self.vision is None else self.vision.layout.parts
        modules = (self.model.get_decoder(), self.model.get_output_embeddings(), *parts)
        read = {id(p) for module in modules if module is not None for p in module.parameters()}
        return {id(p) for p in self.model.parameters()} - read

    def freeze(self, patterns: Sequence[str] | None = None, *, divided: bool = False) -> None:
        """Freeze the parameters that `patterns` name, and those that no packed batch reads.

        Nothing gives the latter a gradient, and weight decay alone would change them.

        Args:
            patterns: of names, see `frozen_names`; None freezes the tower of a vision-language
                model.
            divided: True where ranks hold parts of every weight (ZeRO-3).

        Raises:
            ValueError: a pattern that matches nothing, or nothing is left to train.
        """
        unread, named = self.unread(), dict(self.model.named_parameters())
        frozen = frozen_names(named, self.model.config.model_type, patterns)
        for name, parameter in named.items():
            if id(parameter) in unread or name in frozen:
                parameter.requires_grad_(False)
        if self.vision is not None:
            still = {id(p) for name, p in named.items() if name in frozen or not p.requires_grad}
            parts = self.vision.layout.parts
            self.vision.divided = divided
            self.vision.fixed = all(id(p) in still for part in parts for p in part.parameters())
            self.vision.set_modes()
        if (
            self._reentrant
            and patterns
            and not self.model.get_input_embeddings().weight.requires_grad
        ):
            # A reentrant block has a gradient only if an input wants one.
            self.model.enable_input_require_grads()

    def enable_gradient_checkpointing(self, *, reentrant: bool) -> None:
        """Keep layer inputs only and recompute the rest in the backward pass."""
        self._reentrant = reentrant
        self.model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": reentrant}
        )
        self.train()
