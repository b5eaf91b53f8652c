"""One rank of a policy under DeepSpeed ZeRO: scores, trains, exports.

Packed micro-batches in; log-probs, entropies and metrics out. Runs in a rank of learner or
reference. Taking a step and writing a checkpoint are `ZeroRank`'s; the engine knows neither Ray nor
the algorithm.

Every method is collective: all ranks call it, in the same order, with equally many micro-batches.
"""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from algorithms.inputs import TokenLoss
from workers.data.images.packed import RowImages
from workers.data.packing import PackedBatch, pack_sequences
from workers.data.results import ScoredRows, TrainResult
from workers.engines.model.families.folder_layout import FolderLayout
from workers.engines.model.families.routers import Routings, watched
from workers.engines.model.lora import adapter_name, save_adapter
from workers.engines.model.policy_model import PolicyModel, load_policy_model
from workers.engines.zero.hf_export import export_hf
from workers.engines.zero.lora_weights import export_source
from workers.engines.zero.process_group import ProcessGroupSettings
from workers.engines.zero.rank import ZeroRank
from workers.engines.zero.settings import ZeroSettings
from workers.engines.zero.weighted_loss import TokenLossAlgorithm, check_columns, loss_inputs
from workers.engines.zero.weights import ZeroSource


class PolicyEngine(ZeroRank):
    """Policy under ZeRO on this rank; `ZeroRank` describes the arguments."""

    def __init__(self, settings: ZeroSettings, group: ProcessGroupSettings | None = None) -> None:
        super().__init__(settings, group)
        if settings.exports:
            self.folder_layout()  # refuses before the policy has trained for nothing

    def build_module(self) -> PolicyModel:
        """Load a causal language model with the chunked head."""
        return load_policy_model(
            self.settings.model,
            dtype=getattr(torch, self.settings.param_dtype),
            device=self.load_device,
            attention=self.settings.attention,
            autocast=self.autocast_dtype,
            head_chunk=self.settings.head_chunk,
            sequence_group=self.sequence_group,
            longest=self.settings.longest,
            adapter=self.settings.adapter,
            known_ids=self.settings.known_ids,
        )

    @property
    def policy(self) -> PolicyModel:
        """Policy model, outside DeepSpeed."""
        assert isinstance(self.module, PolicyModel)
        return self.module

    @property
    def hf_model(self) -> nn.Module:
        """Hugging Face module, whose parameter names are those of a checkpoint."""
        return self.policy.model

    def compute_logprobs(
        self,
        micro_batches: Sequence[PackedBatch],
        *,
        temperature: float,
        entropy: bool = False,
        base: bool = False,
    ) -> ScoredRows:
        """Compute log-probs of every row, and entropies if `entropy` is set; no gradient is kept.

        With `base` the log-probs are those of the model that the adapter was attached to.
        """
        logprobs: list[npt.NDArray[np.float32]] = []
        entropies: list[npt.NDArray[np.float32]] = []
        self.policy.eval()
        with torch.no_grad(), self.policy.base() if base else contextlib.nullcontext():
            for batch in micro_batches:
                scored, token_entropies = self._logprobs(batch, temperature, entropy)
                logprobs += batch.split(scored)
                if token_entropies is not None:
                    entropies += batch.split(token_entropies)
        return ScoredRows(logprobs=tuple(logprobs), entropies=tuple(entropies) if entropy else None)

    def probe(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        engine_dtype: str | None = None,
        images: RowImages | None = None,
    ) -> tuple[npt.NDArray[np.float32], ...]:
        """Compute log-probs at temperature 1 of all tokens but the first, as training does.

        `images` are those of the sequences; None where none shows one. Log-probs are over all ids
        of the head, as engines score a prompt: no id is masked.

        With `engine_dtype` the model rounds as an engine of that dtype may: weights as the engine
        is given them, and other roundings between. What differs then is the model's own rounding.
        """
        packed = pack_sequences(sequences, images)
        rounding: AbstractContextManager[None] = contextlib.nullcontext()
        if engine_dtype is not None:
            rounding = self.policy.other_rounding(getattr(torch, engine_dtype))
        with rounding, self.policy.all_ids():
            return self.compute_logprobs([packed], temperature=1.0).logprobs

    def train(
        self,
        updates: Sequence[Sequence[PackedBatch]],
        algorithm: TokenLossAlgorithm,
        *,
        temperature: float,
        old_is_current: bool = False,
    ) -> TrainResult:
        """Take one optimizer step per update.

        Args:
            updates: `updates[u][k]`, micro-batches with the columns and weights the loss reads.
            algorithm: computes the per-token loss.
            temperature: the logits are divided by it, as they were when sampling.
            old_is_current: the policy that started the step is the current one, so that columns
                of the old policy need not be given; one update only.

        Raises:
            ValueError: a column or a term's weights are missing.
        """
        self._optimizer_settings("training")
        if old_is_current and len(updates) > 1:
            raise ValueError(
                f"old_is_current with {len(updates)} updates: after the first the old policy is "
                "another one; give old_logprobs or train one update"
            )
        for batch in (batch for update in updates for batch in update):
            check_columns(batch, algorithm, old_is_current=old_is_current)
        entropy = bool({"entropy", "old_entropy"} & algorithm.loss_columns)

        def loss_of(batch: PackedBatch) -> tuple[Tensor, TokenLoss]:
            with watched(self.hf_model) as routings:
                logprobs, token_entropies = self._logprobs(batch, temperature, entropy)
            inputs = loss_inputs(batch, logprobs, token_entropies, old_is_current=old_is_current)
            return logprobs, self._balanced(algorithm.token_loss(inputs), routings)

        results, logprobs, flags = self.take_steps(updates, loss_of)
        return TrainResult(updates=results, logprobs=logprobs, flags=flags)

    def _balanced(self, loss: TokenLoss, routings: Routings) -> TokenLoss:
        """Add the routers' metrics, and their loss where it has a coefficient, to each token's."""
        if not routings:
            return loss
        terms, metrics = dict(loss.terms), dict(loss.metrics)
        every = torch.zeros_like(terms["policy"])  # [N]
        if coefficient := self.settings.router_balance:
            balance = routings.balance()
            terms["policy"] = terms["policy"] + coefficient * balance
            metrics["router/balance"] = every.detach() + balance.detach()
        metrics["router/load_ratio"] = every.detach() + routings.load()
        return TokenLoss(terms=terms, metrics=metrics, flags=loss.flags)

    def _logprobs(
        self, batch: PackedBatch, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        logprobs, token_entropies = self.forward(batch.to(self.device), temperature, entropy)
        return logprobs, token_entropies

    def folder_layout(self) -> FolderLayout:
        """Return the way from the policy's tensors to those of the folder it was read from.

        Raises:
            ValueError: the policy's tensors are not those of the folder.
        """
        dtype = self.settings.export_dtype
        return FolderLayout(
            self.policy.model,
            export_source(self.hf_model, rank=self.rank, world_size=self.world_size),
            self.settings.model,
            dtype=None if dtype == "source" else getattr(torch, dtype),
        )

    def export_hf(self, folder: str | Path) -> None:
        """Write a Hugging Face folder, shard by shard; rank 0 writes.

        An adapter is merged into it, and stands by itself, as peft writes it, in `adapter/`.
        """
        layout = self.folder_layout()
        export_hf(
            folder,
            layout,
            config=self.policy.model.config,
            source=self.settings.model,
            dtype=layout.dtype,
            writes=self.rank == 0,
        )
        if self.settings.adapter is not None:
            save_adapter(
                Path(folder) / "adapter",
                ZeroSource(
                    self.hf_model,
                    rank=self.rank,
                    world_size=self.world_size,
                    dtype=layout.dtype,
                    rename=adapter_name,
                ),
                model=self.hf_model,
                base=self.settings.model,
                writes=self.rank == 0,
            )
        if self.world_size > 1:
            dist.barrier()
