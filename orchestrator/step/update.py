"""Divide the rows of one optimizer update into micro-batches of every rank, in the driver.

Metadata in, plans out. The weights of sequences are computed before, over the whole update
(`batch.py`); the division changes no weight.

Legend: A rows that train in the update, R ranks, K micro-batches of a rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.step.partition import Partition, SequenceCost, partition
from orchestrator.step.siblings import siblings_of
from workers.data.plans import MicroBatchPlan
from workers.data.trajectory import TrajectoryMeta


@dataclass(frozen=True, kw_only=True)
class Update:
    """One optimizer update of all ranks.

    Attributes:
        micro_batches: `micro_batches[rank][k]`.
        spread: the division, with its balance.
        num_tokens: of the rows, the prompt of each counted.
    """

    micro_batches: list[list[MicroBatchPlan]]
    spread: Partition
    num_tokens: int


def divide(
    rows: npt.NDArray[np.int64],
    metas: Sequence[TrajectoryMeta],
    group_ids: npt.NDArray[np.int64],
    weights: Mapping[str, npt.NDArray[np.float32]],
    *,
    num_ranks: int,
    token_budget: int,
    cost: SequenceCost,
    share_prefixes: bool,
) -> Update:
    """Divide rows among ranks and micro-batches.

    Args:
        rows: [A] of the step.
        metas: [A] of these rows.
        group_ids: [A] of these rows.
        weights: loss term -> [A] of these rows.
        num_ranks: of the role.
        token_budget: of a micro-batch.
        cost: of a sequence.
        share_prefixes: True to compute the prompt of siblings once in a micro-batch.
    """
    tokens = np.asarray([meta.num_tokens for meta in metas], dtype=np.int64)  # [A]
    siblings = siblings_of(metas, group_ids) if share_prefixes else None
    spread = partition(
        tokens, num_ranks=num_ranks, token_budget=token_budget, cost=cost, siblings=siblings
    )
    return Update(
        micro_batches=[
            [
                MicroBatchPlan(
                    rows=rows[chosen],
                    weights={name: weight[chosen] for name, weight in weights.items()},
                    groups=None if siblings is None else siblings.groups[chosen],
                )
                for chosen in rank
            ]
            for rank in spread.rows
        ],
        spread=spread,
        num_tokens=int(tokens.sum()),
    )
