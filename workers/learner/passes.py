"""Train a learner rank in passes over one rollout batch: every pass trains each row once.

Packed micro-batches of each pass in, one record of all updates out. Between passes nothing but the
policy changes: advantages, pi_old and the reference stay those of the step. A loss that reads
`epoch_logprobs` gets the policy's own log-probs from the start of the pass, computed here because
only the learner has them; in the first pass they are those of pi_old. Plans are read elsewhere
(`policy_worker.py`).

Legend: N tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from algorithms.algorithm import Algorithm
from workers.data.packing import PackedBatch

if TYPE_CHECKING:
    from workers.data.results import Rows, UpdateResult
    from workers.engines.zero.policy_engine import PolicyEngine

Updates = Sequence[Sequence[PackedBatch]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """Results of all passes of a step on this rank.

    Example, two passes over one row of three tokens, of which two train:
        Trained(
            updates=(
                UpdateResult(metrics={"loss": -0.012}, grad_norm=0.42, lr=1e-6, skipped=False),
                UpdateResult(metrics={"loss": -0.015}, grad_norm=0.40, lr=1e-6, skipped=False),
            ),
            logprobs=(np.array([0.0, -0.30, -0.02], dtype=np.float32),),
            flags=(np.array([0.0, 0.0, 1.0], dtype=np.float32),),
            gaps=np.array([0.001, 0.0005], dtype=np.float32),
        )

    Attributes:
        updates: of all passes, in order.
        logprobs: of every row as the last pass trained it, in the order of its micro-batches.
        flags: of the loss (`algorithms/flags.py`), of the same rows in the same pass.
        gaps: [M] |log pi_old - log mu| of the M tokens that a pass trains.
    """

    updates: tuple[UpdateResult, ...]
    logprobs: Rows
    flags: Rows
    gaps: npt.NDArray[np.float32]


def train_passes(
    engine: PolicyEngine,
    algorithm: Algorithm,
    passes: Iterable[Updates],
    *,
    temperature: float,
    old_is_current: bool,
) -> Trained:
    """Train pass after pass; the next pass is built when the one before it is done.

    Args:
        engine: the learner's.
        algorithm: computes the per-token loss.
        passes: `updates[u][k]` of each pass, with the columns of the step.
        temperature: of sampling.
        old_is_current: True if pi_old is the policy from which the one update of the one pass
            starts, so that no column holds it.
    """
    results: list[UpdateResult] = []
    rows: Rows = ()
    flags: Rows = ()
    gaps = np.zeros(0, dtype=np.float32)
    for number, updates in enumerate(passes):
        if "epoch_logprobs" in algorithm.loss_columns and not old_is_current:
            if number == 0:
                old = "rollout_logprobs" if algorithm.bypass else "old_logprobs"
                updates = _with_old_as_epoch(updates, old)
            else:
                updates = _with_epoch_logprobs(engine, updates, temperature)
        result = engine.train(
            updates, algorithm, temperature=temperature, old_is_current=old_is_current
        )
        results += result.updates
        rows, flags = result.logprobs, result.flags
        if number == 0:
            gaps = _gaps(updates, rows)
    return Trained(updates=tuple(results), logprobs=rows, flags=flags, gaps=gaps)


def _with_old_as_epoch(updates: Updates, old: str) -> Updates:
    return [
        [batch.with_columns({"epoch_logprobs": batch.columns[old]}) for batch in update]
        for update in updates
    ]


def _with_epoch_logprobs(engine: PolicyEngine, updates: Updates, temperature: float) -> Updates:
    flat = [batch for update in updates for batch in update]
    columns = iter(
        _per_batch(flat, engine.compute_logprobs(flat, temperature=temperature).logprobs)
    )
    return [
        [batch.with_columns({"epoch_logprobs": next(columns)}) for batch in update]
        for update in updates
    ]


def _per_batch(batches: Sequence[PackedBatch], rows: Rows) -> Iterator[torch.Tensor]:
    """Join the values of rows to values [N] of each batch; zeros for a filler."""
    each = iter(rows)
    for batch in batches:
        values = [next(each) for _ in range(batch.num_rows)]
        if values:
            yield torch.from_numpy(np.concatenate(values))
        else:
            yield torch.zeros(batch.num_tokens)


def _gaps(updates: Updates, rows: Rows) -> npt.NDArray[np.float32]:
    """Compute |log pi_old - log mu| of every trained token; without a column, pi_old is `rows`."""
    flat = [batch for update in updates for batch in update]
    gaps = [np.zeros(0, dtype=np.float32)]
    for batch, current in zip(flat, _per_batch(flat, rows), strict=True):
        old = batch.columns.get("old_logprobs", current)
        gap = (old - batch.columns["rollout_logprobs"]).abs()
        gaps.append(gap[batch.loss_mask].numpy())
    return np.concatenate(gaps)
