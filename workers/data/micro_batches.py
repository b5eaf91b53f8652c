"""Turn the rows of a plan into packed micro-batches, and per-row results into Arrow columns.

Learner, reference and critic ranks use both directions: rows of a step's table become
`PackedBatch`es, per-sequence arrays become a record batch keyed by row. No model result is computed
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from workers.data.images.packed import RowImages
from workers.data.packing import REWARD_PART, PackedBatch, pack
from workers.data.plans import MicroBatchPlan, RankPlan, computed_columns
from workers.data.results import Rows
from workers.data.shared_prefixes import ALONE

TOKEN_COLUMNS = ("tokens", "loss_mask")


def packed_rows(
    table: pa.Table,
    micro: MicroBatchPlan,
    names: Sequence[str],
    images: RowImages | None = None,
    reward_parts: Sequence[str] = (),
) -> PackedBatch:
    """Pack the rows of one micro-batch with the per-token columns `names` and their weights.

    Args:
        table: trajectories of a step.
        micro: the rows.
        names: of the per-token columns to pack.
        images: of all rows of `table`; None where no row shows one.
        reward_parts: names of the parts to pack; every reward has them.
    """
    rewards = np.zeros(table.num_rows, dtype=np.float32)
    if "reward" in table.column_names:
        rewards[micro.rows] = table.column("reward").take(pa.array(micro.rows)).to_numpy()
    truncated = np.zeros(table.num_rows, dtype=np.float32)
    if "finish_reason" in table.column_names:
        ended = table.column("finish_reason").take(pa.array(micro.rows))
        truncated[micro.rows] = np.asarray(ended.to_pylist()) == "length"
    siblings = np.zeros(table.num_rows, dtype=np.float32)
    if "group_id" in table.column_names:
        ids = table.column("group_id").take(pa.array(micro.rows)).to_pylist()
        siblings[micro.rows] = np.unique(ids, return_inverse=True)[1]
    parts = {name: np.zeros(table.num_rows, dtype=np.float32) for name in reward_parts}
    if parts:
        given = table.column("reward_parts").take(pa.array(micro.rows)).to_pylist()
        for name, values in parts.items():
            values[micro.rows] = [dict(one)[name] for one in given]
    weights = {}
    for name, own in micro.weights.items():
        weights[name] = np.zeros(table.num_rows, dtype=np.float32)
        weights[name][micro.rows] = own
    groups = None
    if micro.groups is not None:
        groups = np.full(table.num_rows, ALONE, dtype=np.int64)
        groups[micro.rows] = micro.groups
    return pack(
        {name: table.column(name) for name in (*TOKEN_COLUMNS, *names)},
        micro.rows,
        sequence_columns={
            "rewards": rewards,
            "truncated": truncated,
            "group_ids": siblings,
            **{f"{REWARD_PART}{name}": values for name, values in parts.items()},
        },
        weights=weights,
        groups=groups,
        images=images,
    )


def with_staleness(table: pa.Table, version: int) -> pa.Table:
    """Add the column `staleness`, a list of float32 per row; 0 for tokens that were not sampled.

    Args:
        table: trajectories, with their `weight_versions`.
        version: label of the weights that start the step.
    """
    versions = table.column("weight_versions").combine_chunks()
    flat = versions.flatten().to_numpy()
    staleness = np.where(flat < 0, 0, version - flat).astype(np.float32)
    offsets = versions.offsets.to_numpy() - versions.offsets[0].as_py()
    column = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(staleness))
    return table.append_column("staleness", column)


def with_turn_numbers(table: pa.Table) -> pa.Table:
    """Add the column `turn_numbers`, a list of float32 per row; 0 for tokens that no turn sampled.

    Args:
        table: trajectories, with their `turns`.
    """
    tokens = table.column("tokens").combine_chunks()
    numbers = []
    for length, turns in zip(
        tokens.value_lengths().to_pylist(), table.column("turns").to_pylist(), strict=True
    ):
        own = np.zeros(length, dtype=np.float32)
        for turn in turns:
            own[turn["start"] : turn["end"]] = turn["number"]
        numbers.append(own)
    offsets = tokens.offsets.to_numpy() - tokens.offsets[0].as_py()
    flat = np.concatenate([np.zeros(0, dtype=np.float32), *numbers])
    column = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))
    return table.append_column("turn_numbers", column)


def as_columns(plan: RankPlan, columns: Mapping[str, Rows]) -> pa.RecordBatch:
    """Convert per-sequence arrays, in the order of the plan's rows, to columns keyed by row."""
    rows = np.concatenate([micro.rows for micro in plan.micro_batches])
    some = next(iter(columns.values()))
    lengths = np.asarray([len(values) for values in some], dtype=np.int64)
    empty = np.zeros(0, dtype=np.float32)
    flat = {name: np.concatenate([empty, *values]) for name, values in columns.items()}
    return computed_columns(rows, lengths, **flat)
