"""What the driver tells a learner rank to do with a step's rows. Plain data, no tensor.

A row is an index into the step's trajectories, which a worker reads as the concatenation of
`Slice`s of record batches from the object store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Rows [start, start + length) of record batch number `batch`."""

    batch: int
    start: int
    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRows:
    """Where a step's rows lie: `slices` of the record batches behind the references `batches`."""

    slices: Sequence[Slice]
    batches: Sequence[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatchPlan:
    """Rows that are computed together, and the weight of every trained token of each.

    Attributes:
        rows: [M] int64, possibly empty: every rank runs equally many micro-batches.
        weights: loss term -> [M] float32.
    """

    rows: npt.NDArray[np.int64]
    weights: Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankPlan:
    """One rank's micro-batches of each optimizer update of a step.

    Attributes:
        updates: `updates[u][k]` of all passes over the batch, equally long on every rank.
        num_passes: how many; all are of equally many updates.
        coefficients: numbers of the algorithm that hold for this step, by dotted path.
    """

    updates: tuple[tuple[MicroBatchPlan, ...], ...]
    num_passes: int = 1
    coefficients: Mapping[str, float] = field(default_factory=dict)

    @property
    def passes(self) -> list[RankPlan]:
        """Each pass as a plan of its own; the ranks' together hold every row once."""
        size = len(self.updates) // self.num_passes
        return [
            replace(self, updates=self.updates[start : start + size], num_passes=1)
            for start in range(0, len(self.updates), size)
        ]

    @property
    def micro_batches(self) -> list[MicroBatchPlan]:
        """The micro-batches of the first pass in order: what is scored before training."""
        once = self.updates[: len(self.updates) // self.num_passes]
        return [micro for update in once for micro in update]


@dataclass(frozen=True, kw_only=True, slots=True)
class CreditPlan:
    """What credit needs beside the tokens: one value per row of the step.

    Attributes:
        shaped_rewards: [S] float32, after the algorithm's reward shaping.
        group_ids: [S] int64.
        trained: [S] bool, False where a filter masks the whole sequence.
        coefficients: numbers of the algorithm that hold for this step, by dotted path.
    """

    shaped_rewards: npt.NDArray[np.float32]
    group_ids: npt.NDArray[np.int64]
    trained: npt.NDArray[np.bool_]
    coefficients: Mapping[str, float] = field(default_factory=dict)


def step_table(slices: Sequence[Slice], batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """A step's trajectories; row r is what every plan counts."""
    return pa.Table.from_batches(
        [batches[piece.batch].slice(piece.start, piece.length) for piece in slices]
    )
