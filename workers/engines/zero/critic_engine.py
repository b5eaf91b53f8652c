"""One rank of a critic under DeepSpeed ZeRO: computes values, and learns them from returns.

Packed micro-batches in; values and metrics out. Runs in a critic rank. Taking a step and writing a
checkpoint are `ZeroRank`'s; the loss that fits the values is the algorithm's.

Every method is collective: all ranks call it, in the same order, with equally many micro-batches.

Legend: N tokens of a micro-batch.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from algorithms.inputs import LossInputs, TokenLoss
from workers.data.packing import PackedBatch
from workers.data.results import Rows, UpdateResult
from workers.engines.model.critic_model import CriticModel, load_critic_model
from workers.engines.zero.rank import ZeroRank
from workers.engines.zero.weighted_loss import known_columns


class CriticLossAlgorithm(Protocol):
    """Part of an `algorithms.algorithm.Algorithm` that the critic needs."""

    @property
    def value_columns(self) -> frozenset[str]:
        """Columns that `critic_loss` reads; `values` are the critic's own."""
        ...

    def critic_loss(self, inputs: LossInputs) -> TokenLoss:
        """Compute the unreduced loss [N] under the term "value"."""
        ...


class CriticEngine(ZeroRank):
    """Critic under ZeRO on this rank; `ZeroRank` describes the arguments."""

    def build_module(self) -> CriticModel:
        """Load the backbone of `settings.model` under a value head."""
        return load_critic_model(
            self.settings.model,
            dtype=getattr(torch, self.settings.param_dtype),
            device=self.load_device,
            attention=self.settings.attention,
            autocast=self.autocast_dtype,
            longest=self.settings.longest,
        )

    def values(self, micro_batches: Sequence[PackedBatch]) -> Rows:
        """Compute the values of every row, one float32 array [tokens] each; no gradient is kept."""
        values: list[Any] = []
        self.module.eval()
        with torch.no_grad():
            for batch in micro_batches:
                values += batch.split(self._values(batch))
        return tuple(values)

    def train(
        self, updates: Sequence[Sequence[PackedBatch]], algorithm: CriticLossAlgorithm
    ) -> tuple[UpdateResult, ...]:
        """Take one optimizer step per update.

        Args:
            updates: `updates[u][k]`, micro-batches with the columns `returns` and `old_values` (as
                far as the loss reads them) and the weights of the term "value".
            algorithm: computes the per-token loss.

        Raises:
            ValueError: a column or the term's weights are missing.
        """
        self._optimizer_settings("training")
        for batch in (batch for update in updates for batch in update):
            _check_columns(batch, algorithm)

        def loss_of(batch: PackedBatch) -> tuple[Tensor, TokenLoss]:
            values = self._values(batch)
            return values, algorithm.critic_loss(value_inputs(batch, values))

        return self.take_steps(updates, loss_of)[0]

    def _values(self, batch: PackedBatch) -> Tensor:
        values: Tensor = self.forward(batch.to(self.device))
        return values


def value_inputs(batch: PackedBatch, values: Tensor) -> LossInputs:
    """Join a batch's columns with the present values [N].

    A critic's loss has no policy in it: log-probs and advantages that the batch lacks are zeros.
    """
    given: dict[str, Any] = dict.fromkeys(
        ("logprobs", "old_logprobs", "advantages"), torch.zeros_like(values)
    )
    given |= known_columns(batch)
    given |= {
        "values": values,
        "loss_mask": batch.loss_mask,
        "sequence_ids": batch.sequence_ids,
    }
    return LossInputs(**given)


def _check_columns(batch: PackedBatch, algorithm: CriticLossAlgorithm) -> None:
    have = set(batch.columns) | set(batch.sequence_columns) | {"values"}
    missing = sorted(algorithm.value_columns - have)
    if missing:
        raise ValueError(
            f"the batch has no column {', '.join(missing)}, which the value loss reads; it has "
            f"{', '.join(sorted(batch.columns)) or 'none'}"
        )
