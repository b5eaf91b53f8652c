"""Define the plans that the driver sends to learner and critic ranks, and the table that they name.

A row is an index into the step's trajectories, which a rank reads as the concatenation of `Slice`s
of record batches from the object store. What ranks compute for these rows travels as record batches
of its own, keyed by `row`: float32, but `loss_flags` is uint8, which tokens' gradients were cut in
the last update that trained the row, bit 1 by the loss's clip, 2 by a gate such as ERC, 4 by the
correction. Plain data, no tensor. The plans are made in `orchestrator/step/`, not
here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FLAGS = "loss_flags"  # computed column, see `algorithms/flags.py`


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Rows [start, start + length) of record batch number `batch`.

    Example, rows 4 and 5 of the first batch:
        Slice(batch=0, start=4, length=2)
    """

    batch: int
    start: int
    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRows:
    """Places of a step's rows: `slices` of the record batches behind the references `batches`.

    Example, four rows: rows 4 and 5 of one batch, then rows 0 and 1 of another:
        StepRows(
            slices=(Slice(batch=0, start=4, length=2), Slice(batch=1, start=0, length=2)),
            batches=(ref_0, ref_1),
        )
    """

    slices: Sequence[Slice]
    batches: Sequence[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatchPlan:
    """Rows that are computed together, and the weight of every trained token of each.

    Example, rows 0 and 3 under token_mean over a batch of 8 trained tokens (1/8 for each token):
        MicroBatchPlan(
            rows=np.array([0, 3]), weights={"policy": np.array([0.125, 0.125], dtype=np.float32)}
        )

    Attributes:
        rows: [M] int64, possibly empty: every rank runs equally many micro-batches.
        weights: loss term -> [M] float32.
        groups: [M] int64; rows of an equal number are siblings and share their common prefix,
            unless it is `shared_prefixes.ALONE`. None: nothing is shared.
    """

    rows: npt.NDArray[np.int64]
    weights: Mapping[str, npt.NDArray[np.float32]]
    groups: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RankPlan:
    """One rank's micro-batches of each optimizer update of a step.

    Example, one of two ranks in a step of four rows, with two passes of one update each. This rank
    trains rows 0 and 3, the other rank rows 1 and 2, in the same number of micro-batches:
        RankPlan(
            updates=(
                (
                    MicroBatchPlan(rows=np.array([0]), weights={"policy": np.array([0.125])}),
                    MicroBatchPlan(rows=np.array([3]), weights={"policy": np.array([0.125])}),
                ),
                (
                    MicroBatchPlan(rows=np.array([3]), weights={"policy": np.array([0.125])}),
                    MicroBatchPlan(rows=np.array([0]), weights={"policy": np.array([0.125])}),
                ),
            ),
            num_passes=2,
            coefficients={"regularizers.kl.coefficient": 0.001},
        )

    Attributes:
        updates: `updates[u][k]` is micro-batch k of update u, the updates of all passes in order;
            equally long on every rank.
        num_passes: passes over the batch; all have the same number of updates.
        coefficients: numbers of the algorithm that hold for this step, by dotted path.
        version: label of the weights that start the step.
    """

    updates: tuple[tuple[MicroBatchPlan, ...], ...]
    num_passes: int = 1
    coefficients: Mapping[str, float] = field(default_factory=dict)
    version: int = 0

    @property
    def passes(self) -> list[RankPlan]:
        """Every pass as a plan of its own; over all ranks, a pass holds every row once."""
        size = len(self.updates) // self.num_passes
        return [
            replace(self, updates=self.updates[start : start + size], num_passes=1)
            for start in range(0, len(self.updates), size)
        ]

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Rows that this rank trains in any pass, each once; passes divide the rows anew."""
        return np.unique(np.concatenate([m.rows for update in self.updates for m in update]))

    @property
    def micro_batches(self) -> list[MicroBatchPlan]:
        """Micro-batches of the first pass in order: the rows that are scored before training."""
        once = self.updates[: len(self.updates) // self.num_passes]
        return [micro for update in once for micro in update]


@dataclass(frozen=True, kw_only=True, slots=True)
class CreditPlan:
    """Inputs of credit beside the tokens: one value per row of the step.

    Example, two groups of two siblings, of which a filter masks the second group:
        CreditPlan(
            shaped_rewards=np.array([1.0, 0.0, 1.0, 1.0], dtype=np.float32),
            group_ids=np.array([0, 0, 1, 1]),
            trained=np.array([True, True, False, False]),
            coefficients={"advantage.kl_coefficient": 0.01},
        )

    Attributes:
        shaped_rewards: [S] float32, after the algorithm's reward shaping.
        group_ids: [S] int64.
        trained: [S] bool, False where a filter masks the whole sequence.
        coefficients: numbers of the algorithm that hold for this step, by dotted path.
        rollout_ids: [S] int64, 0, 1, ... in order; rows of one rollout stand beside each other and
            have equal rewards. None: every row is a rollout of its own.
    """

    shaped_rewards: npt.NDArray[np.float32]
    group_ids: npt.NDArray[np.int64]
    trained: npt.NDArray[np.bool_]
    coefficients: Mapping[str, float] = field(default_factory=dict)
    rollout_ids: npt.NDArray[np.int64] | None = None


def step_table(slices: Sequence[Slice], batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """Return a step's trajectories as one table; rows of every plan are rows of this table."""
    return pa.Table.from_batches(
        [batches[piece.batch].slice(piece.start, piece.length) for piece in slices]
    )


def computed_columns(
    rows: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], **columns: npt.NDArray[np.float32]
) -> pa.RecordBatch:
    """Build a record batch of per-token columns that were computed for some rows of a step.

    Args:
        rows: [R] for each sequence, its row in the step's table.
        lengths: [R] tokens of each.
        columns: name -> [sum(lengths)] values in that order; those of `FLAGS` become uint8.

    Raises:
        ValueError: a column has another number of values than there are tokens.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    names, arrays = ["row"], [pa.array(rows, pa.int64())]
    for name, values in columns.items():
        if len(values) != offsets[-1]:
            raise ValueError(f"{name} has {len(values)} values for {offsets[-1]} tokens")
        names.append(name)
        kind = np.uint8 if name == FLAGS else np.float32
        flat = pa.array(np.ascontiguousarray(values, dtype=kind))
        arrays.append(pa.LargeListArray.from_arrays(pa.array(offsets), flat))
    return pa.RecordBatch.from_arrays(arrays, names=names)


def join_computed(
    table: pa.Table,
    computed: Sequence[pa.RecordBatch],
    *,
    names: Collection[str] | None = None,
    rows: npt.ArrayLike | None = None,
) -> pa.Table:
    """Add the computed columns to `table`; null in rows that no batch holds.

    Args:
        table: trajectories of a step.
        computed: columns keyed by `row`, an index into `table`.
        names: of the columns to copy; None copies all.
        rows: to copy, others become null; None copies all.
    """
    by_name: dict[str, list[pa.RecordBatch]] = {}
    for batch in computed:
        if rows is not None:
            batch = batch.filter(pa.array(np.isin(batch.column("row").to_numpy(), rows)))
        for name in batch.schema.names:
            if name != "row" and (names is None or name in names):
                by_name.setdefault(name, []).append(batch)
    for name, batches in by_name.items():
        present = np.concatenate([batch.column("row").to_numpy() for batch in batches])
        values = pa.concat_arrays([batch.column(name) for batch in batches])
        position = np.full(table.num_rows, -1, dtype=np.int64)
        position[present] = np.arange(len(present))
        indices = pa.array(position, mask=position < 0)
        table = table.append_column(name, values.take(indices))
    return table
