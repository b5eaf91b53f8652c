"""From a packed batch and fresh log-probs to the one scalar that is differentiated, and metrics.

The algorithm computes per-token values; here they are weighted and summed, never averaged: every
denominator is in the weights, which are global. `MetricSums` does for metrics what the weights do
for the loss. Runs in every rank that trains. Computes no weight: the driver does.

Legend: N tokens of a micro-batch, S sequences.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from algorithms.inputs import LossInputs, TokenLoss
from workers.data.packing import PackedBatch

# What the current policy is the same as, when nothing has been updated since the step began.
IDENTITIES = {
    "old_logprobs": "logprobs",
    "epoch_logprobs": "logprobs",
    "old_entropy": "entropy",
}
_FIELDS = frozenset(item.name for item in fields(LossInputs))


class TokenLossAlgorithm(Protocol):
    """Part of an `algorithms.algorithm.Algorithm` that the learner needs."""

    @property
    def loss_columns(self) -> frozenset[str]:
        """Columns that `token_loss` reads."""
        ...

    def token_loss(self, inputs: LossInputs) -> TokenLoss:
        """Compute the unreduced losses [N] per term."""
        ...


def loss_inputs(
    batch: PackedBatch,
    logprobs: Tensor,  # [N]
    entropy: Tensor | None,  # [N]
    *,
    old_is_current: bool,
) -> LossInputs:
    """Join a batch's columns with the current policy's.

    Args:
        batch: columns of the names of `LossInputs`; others are ignored.
        logprobs: of the current policy, with gradient.
        entropy: of the current policy, or None where nothing reads it.
        old_is_current: the policy that started the step is the current one, so its columns need
            not be there: they are the current ones, detached.
    """
    given = known_columns(batch)
    current = {"logprobs": logprobs, "entropy": entropy}
    if old_is_current:
        for name, source in IDENTITIES.items():
            value = current[source]
            if name not in given and value is not None:
                given[name] = value.detach()
    # An algorithm that declares no old log-probs gets the current ones, as its contract has it.
    given.setdefault("old_logprobs", logprobs.detach())
    values: dict[str, Any] = given | {
        "logprobs": logprobs,
        "entropy": entropy,
        "loss_mask": batch.loss_mask,
        "sequence_ids": batch.sequence_ids,
    }
    return LossInputs(**values)


def known_columns(batch: PackedBatch) -> dict[str, Tensor]:
    """Select the columns [N] or [S] of a batch that `LossInputs` has a name for."""
    columns = {**batch.columns, **batch.sequence_columns}
    return {name: value for name, value in columns.items() if name in _FIELDS}


def check_columns(
    batch: PackedBatch, algorithm: TokenLossAlgorithm, *, old_is_current: bool
) -> None:
    """Raise ValueError where the batch lacks what the loss reads."""
    have = set(batch.columns) | set(batch.sequence_columns) | {"entropy"}
    have |= set(IDENTITIES) if old_is_current else set()
    missing = sorted((algorithm.loss_columns | {"advantages"}) - have)
    if missing:
        raise ValueError(
            f"the batch has no column {', '.join(missing)}, which the loss reads; it has "
            f"{', '.join(sorted(batch.columns))}"
        )


def weighted_sum(batch: PackedBatch, loss: TokenLoss) -> Tensor:
    """Sum term * weight of its sequence over terms and trained tokens: a scalar.

    Raises:
        ValueError: the batch has no weights for a term.
    """
    unweighted = sorted(set(loss.terms) - set(batch.weights))
    if unweighted:
        raise ValueError(
            f"no sequence weights for the loss term {', '.join(unweighted)}: the batch has "
            f"{', '.join(sorted(batch.weights)) or 'none'}; pack it with weights of every term"
        )
    trained = batch.loss_mask
    total = torch.zeros((), device=trained.device)
    for name, term in loss.terms.items():
        weight = batch.weights[name][batch.sequence_ids]  # [N]
        total = total + (term[trained] * weight[trained]).sum()
    return total


@dataclass(kw_only=True)
class MetricSums:
    """Sums, extremes and the token count of an optimizer update, on this rank until reduced."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    extremes: dict[str, Tensor] = field(default_factory=dict)

    def add(self, batch: PackedBatch, metrics: Mapping[str, Tensor], loss: Tensor) -> None:
        """Add one micro-batch; nothing is read back from the device."""
        trained = batch.loss_mask
        self._sum("loss", loss.detach())
        self._sum("num_tokens", trained.sum())
        for name, value in metrics.items():
            picked = value.detach()[trained]  # [M]
            if name.endswith(("_max", "_min")):
                self._extreme(name, picked)
            else:
                self._sum(name, picked.sum())

    def _sum(self, name: str, value: Tensor) -> None:
        before = self.sums.get(name)
        self.sums[name] = value.double() if before is None else before + value.double()

    def _extreme(self, name: str, picked: Tensor) -> None:
        sign = -1.0 if name.endswith("_min") else 1.0
        before = self.extremes.get(name)
        value = picked.new_full((), float("-inf"))
        if picked.numel():
            value = (sign * picked).amax()
        self.extremes[name] = value if before is None else torch.maximum(before, value)


def reduced_metrics(
    updates: list[MetricSums], device: torch.device, *, copies: int = 1
) -> list[dict[str, float]]:
    """Reduce the metrics of each update over all ranks, in two collectives for all updates.

    Args:
        updates: of this rank.
        device: where the collectives run.
        copies: ranks that counted the same tokens, as those that share every batch do.

    "loss" is the plain sum (its weights are global already), "num_tokens" a count, names in
    `_max` and `_min` are extremes, everything else is a mean over all trained tokens.
    """
    sums = [
        value.to(device, torch.float64)
        for update in updates
        for _, value in sorted(update.sums.items())
    ]
    extremes = [
        value.to(device, torch.float64)
        for update in updates
        for _, value in sorted(update.extremes.items())
    ]
    flat = _all_reduce(sums, dist.ReduceOp.SUM)
    peaks = _all_reduce(extremes, dist.ReduceOp.MAX)
    results = []
    for update in updates:
        totals = {name: flat.pop(0) / copies for name in sorted(update.sums)}
        count = max(1.0, totals["num_tokens"])
        values = {
            name: total if name in ("loss", "num_tokens") else total / count
            for name, total in totals.items()
        }
        for name in sorted(update.extremes):
            peak = peaks.pop(0)
            if peak != float("-inf"):
                values[name] = -peak if name.endswith("_min") else peak
        results.append(values)
    return results


def _all_reduce(values: list[Tensor], operation: dist.ReduceOp.RedOpType) -> list[float]:
    if not values:
        return []
    flat = torch.stack(values)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(flat, op=operation)
    return flat.tolist()
