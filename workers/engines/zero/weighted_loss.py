"""From a packed batch and fresh log-probs to the one scalar that is differentiated, and metrics.

The algorithm computes per-token values; here they are weighted and summed, never averaged: every
denominator is in the weights, which are global. `MetricSums` does for metrics what the weights do
for the loss. Runs in every rank that trains. Computes no weight: the driver does.

Legend: N tokens of a micro-batch, S sequences.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from algorithms.inputs import LossInputs, TokenLoss
from workers.data.packing import REWARD_PART, PackedBatch

# What the current policy is the same as, when nothing has been updated since the step began.
IDENTITIES = {
    "old_logprobs": "logprobs",
    "epoch_logprobs": "logprobs",
    "old_entropy": "entropy",
}
PLAIN_SUMS = ("loss", "num_tokens")  # of every update: no mean over tokens
COUNT = " tokens"  # behind the name of a metric: the tokens that measured it
Key: TypeAlias = tuple[int, str]  # number of an update, name of a metric
Metrics: TypeAlias = dict[str, float]
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


def known_columns(batch: PackedBatch) -> dict[str, Any]:
    """Select the columns [N] or [S] of a batch that `LossInputs` has a name for.

    The reward's parts [S] are one of them, by name.
    """
    columns = {**batch.columns, **batch.sequence_columns}
    known: dict[str, Any] = {name: value for name, value in columns.items() if name in _FIELDS}
    parts = (name for name in columns if name.startswith(REWARD_PART))
    known["reward_parts"] = {name.removeprefix(REWARD_PART): columns[name] for name in parts}
    known |= {name: known[name].bool() for name in known.keys() & {"truncated"}}
    return known | {name: known[name].long() for name in known.keys() & {"group_ids"}}


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
        # Not `term[trained]`: to pick by a mask, the host waits for the device.
        total = total + (torch.where(trained, term, 0.0) * weight).sum()
    return total


@dataclass(kw_only=True)
class MetricSums:
    """Sums, extremes and token counts of an optimizer update, on this rank until reduced."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    extremes: dict[str, Tensor] = field(default_factory=dict)

    def add(self, batch: PackedBatch, metrics: Mapping[str, Tensor], loss: Tensor) -> None:
        """Add one micro-batch; nothing is read back from the device.

        Raises:
            ValueError: a metric has the name of a number that every update has.
        """
        taken = sorted(set(metrics) & set(PLAIN_SUMS))
        if taken:
            raise ValueError(f"metric {taken[0]!r} is the update's own; call it policy/{taken[0]}")
        trained = batch.loss_mask
        num = trained.sum()
        self._sum("loss", loss.detach())
        self._sum("num_tokens", num)
        for name, value in metrics.items():
            if name.endswith(("_max", "_min")):
                self._extreme(name, value.detach(), trained)
            else:
                self._sum(name, torch.where(trained, value.detach(), 0.0).sum())
                self._sum(name + COUNT, num)

    def _sum(self, name: str, value: Tensor) -> None:
        before = self.sums.get(name)
        self.sums[name] = value.double() if before is None else before + value.double()

    def _extreme(self, name: str, value: Tensor, trained: Tensor) -> None:
        sign = -1.0 if name.endswith("_min") else 1.0
        peak = value.new_full((), -math.inf)
        if value.numel():
            peak = torch.where(trained, sign * value, -math.inf).amax()
        before = self.extremes.get(name)
        self.extremes[name] = peak if before is None else torch.maximum(before, peak)


def reduced_metrics(
    updates: list[MetricSums], device: torch.device, *, copies: int = 1
) -> list[dict[str, float]]:
    """Reduce the metrics of each update over all ranks, together for all updates.

    The ranks agree on the names first: a metric that some ranks did not measure is reduced over the
    others, so that a number never lands under another name.

    Args:
        updates: of this rank.
        device: where the collectives run.
        copies: ranks that counted the same tokens, as those that share every batch do.

    Returns:
        For each update, by name: "loss" is the plain sum (its weights are global already),
        "num_tokens" a count, names in `_max` and `_min` are extremes, everything else is a mean
        over all trained tokens that measured it.
    """
    sums = _agreed({(number, name) for number, own in enumerate(updates) for name in own.sums})
    peaks = _agreed({(number, name) for number, own in enumerate(updates) for name in own.extremes})
    flat = _all_reduce(
        [updates[number].sums.get(name) for number, name in sums],
        empty=0.0,
        operation=dist.ReduceOp.SUM,
        device=device,
    )
    high = _all_reduce(
        [updates[number].extremes.get(name) for number, name in peaks],
        empty=-math.inf,
        operation=dist.ReduceOp.MAX,
        device=device,
    )
    values = torch.cat([flat, high]).tolist()  # all numbers leave the device together
    totals = {key: value / copies for key, value in zip(sums, values, strict=False)}
    extremes = dict(zip(peaks, values[len(sums) :], strict=True))
    return [_named(number, totals, extremes) for number in range(len(updates))]


def _named(number: int, totals: Mapping[Key, float], extremes: Mapping[Key, float]) -> Metrics:
    """Return the metrics of one update; a metric that no token measured is left out."""
    metrics: Metrics = {}
    for (update, name), total in totals.items():
        if update != number or name.endswith(COUNT):
            continue
        count = 1.0 if name in PLAIN_SUMS else totals[number, name + COUNT]
        if count:
            metrics[name] = total / count
    for (update, name), peak in extremes.items():
        if update == number and peak != -math.inf:
            metrics[name] = -peak if name.endswith("_min") else peak
    return metrics


def _agreed(keys: set[Key]) -> list[Key]:
    """Return the keys that any rank has, in one order on all ranks."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return sorted(keys)
    gathered: list[set[Key]] = [set() for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, keys)
    return sorted(set().union(*gathered))


def _all_reduce(
    values: list[Tensor | None],
    *,
    empty: float,
    operation: dist.ReduceOp.RedOpType,
    device: torch.device,
) -> Tensor:
    """Reduce scalars over all ranks -> [number of values], float64; `empty` stands for None."""
    if not values:
        return torch.zeros(0, dtype=torch.float64, device=device)
    absent = torch.full((), empty, dtype=torch.float64, device=device)
    flat = torch.stack([absent if v is None else v.to(device, torch.float64) for v in values])
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(flat, op=operation)
    return flat
