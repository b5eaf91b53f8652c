"""Assign credit to a whole step: from rewards of S trajectories to advantages of their N tokens.

A pure function from Arrow to Arrow around `Algorithm.credit`, run by rank 0 of the learner. Every
sequence of the step is read at once, so group and batch statistics do not depend on ranks; the rows
of one rollout are one sequence, so the statistics count rollouts. The
shaping of rewards and the filters are not applied here: the plan holds the shaped rewards and the
filtered rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from algorithms.algorithm import Algorithm
from algorithms.composition import part_values
from algorithms.inputs import CreditInputs
from workers.data.plans import CreditPlan, computed_columns


def assign_credit(
    algorithm: Algorithm, plan: CreditPlan, table: pa.Table
) -> tuple[pa.RecordBatch, Mapping[str, float]]:
    """Compute the advantages (and returns, if there are any) of every row of a step.

    Args:
        algorithm: its `credit` is called.
        plan: rewards, groups and filtered rows, one value per row of `table`.
        table: trajectories, with the columns that `algorithm.credit_columns` names.

    Returns:
        Columns `advantages` (and `returns`) keyed by `row`, and metrics.
    """
    lengths = _list_lengths(table.column("tokens"))  # [S]
    mask = _flat(table.column("loss_mask"), lengths).astype(np.bool_)  # [N]
    mask &= np.repeat(plan.trained, lengths)
    rollouts = np.arange(len(lengths)) if plan.rollout_ids is None else plan.rollout_ids  # [S]
    first = np.unique(rollouts, return_index=True)[1]  # the first row of each rollout
    columns = {
        name: torch.from_numpy(_flat(table.column(name), lengths).astype(np.float32))
        for name in algorithm.credit_columns
        if name in table.column_names
    }
    credit = algorithm.credit(
        CreditInputs(
            shaped_rewards=torch.from_numpy(plan.shaped_rewards[first]),
            group_ids=torch.from_numpy(plan.group_ids[first]),
            sequence_ids=torch.from_numpy(np.repeat(rollouts, lengths)),
            loss_mask=torch.from_numpy(mask),
            truncated=_truncated(table, first),
            reward_parts=_reward_parts(table, first, algorithm.advantage.reward_parts),
            **_turns(table, lengths),
            **columns,
        )
    )
    earned = {"advantages": credit.advantages.float().numpy()}
    trained = earned["advantages"][mask]
    metrics = {
        **credit.metrics,  # first: a part's metric does not replace these
        "credit/advantage_mean": float(trained.mean()),
        "credit/advantage_std": float(trained.std()),
        "credit/zero_frac": float(np.mean(trained == 0.0)),
    }
    if credit.returns is not None:
        earned["returns"] = credit.returns.float().numpy()
        values = columns["values"].numpy()[mask]
        metrics |= critic_metrics(values, earned["returns"][mask])
    return computed_columns(np.arange(len(lengths)), lengths, **earned), metrics


def _truncated(table: pa.Table, first: npt.NDArray[np.int64]) -> torch.Tensor | None:
    """Mark the rollouts that the length limit stopped; None where the table does not say."""
    if "finish_reason" not in table.column_names:
        return None
    reasons = table.column("finish_reason").to_pylist()
    return torch.tensor([reasons[row] == "length" for row in first.tolist()])


def _turns(table: pa.Table, lengths: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
    """Return the turns of all rows, numbered in the order of their tokens; {} without a column."""
    if "turns" not in table.column_names:
        return {}
    column = table.column("turns").combine_chunks()
    spans = column.flatten()
    counts = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.repeat(np.cumsum(lengths) - lengths, counts)  # [T] first token of each turn's row
    begin, end = (spans.field(name).to_numpy(zero_copy_only=False) for name in ("start", "end"))
    sizes = (end - begin).astype(np.int64)  # [T]
    inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    turn_ids = np.full(int(lengths.sum()), -1, dtype=np.int64)
    turn_ids[np.repeat(starts + begin, sizes) + inside] = np.repeat(np.arange(len(sizes)), sizes)
    rewards = spans.field("reward").to_numpy(zero_copy_only=False).astype(np.float32)
    return {
        "turn_ids": torch.from_numpy(turn_ids),
        "turn_rewards": torch.from_numpy(rewards),
        "turn_states": torch.from_numpy(spans.field("state").to_numpy(zero_copy_only=False).copy()),
    }


def _reward_parts(
    table: pa.Table, first: npt.NDArray[np.int64], names: Sequence[str]
) -> dict[str, torch.Tensor] | None:
    """Return the named parts of every rollout's reward; None where the advantage names none."""
    if not names:
        return None
    rows = table.column("reward_parts").to_pylist()
    parts = [dict(rows[row]) for row in first.tolist()]
    return {name: part_values("advantage", name, parts) for name in names}


def critic_metrics(
    values: npt.NDArray[np.float32], returns: npt.NDArray[np.float32]
) -> dict[str, float]:
    """Compare values [M] with the returns [M] of the trained tokens, before the critic trains.

    Explained variance is 1 - var(returns - values) / var(returns): 1 is perfect, 0 no better than
    a constant, negative worse; 0 too if the returns do not vary.
    """
    spread = float(returns.var(dtype=np.float64))
    unexplained = float((returns - values).var(dtype=np.float64))
    return {
        "critic/value_mean": float(values.mean()),
        "critic/return_mean": float(returns.mean()),
        "critic/explained_variance": 1.0 - unexplained / spread if spread else 0.0,
    }


def _list_lengths(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]).astype(
        np.int64
    )


def _flat(column: pa.ChunkedArray, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.generic]:
    """Flatten a list column to values [N]; the tokens of a null row are zeros."""
    values = np.concatenate(
        [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    )
    present = np.asarray(column.is_valid())
    if present.all():
        return values
    flat = np.zeros(int(lengths.sum()), dtype=values.dtype)
    flat[np.repeat(present, lengths)] = values
    return flat
