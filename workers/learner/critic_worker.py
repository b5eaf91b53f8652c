"""Run the critic role: one DeepSpeed rank in a Ray actor that computes values and learns them.

Plans and references to Arrow batches in; a `values` column and metrics out. The computation is in
`workers/engines/zero/critic_engine.py`. The critic is trained and saved, never published: rollout
engines do not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pyarrow as pa

from algorithms.algorithm import Algorithm
from workers.data.micro_batches import as_columns, packed_rows
from workers.data.plans import RankPlan, StepRows
from workers.engines.zero.settings import ZeroSettings
from workers.learner.rank_worker import RankWorker
from workers.learner.step_metrics import merged_metrics
from workers.spans import recorded

if TYPE_CHECKING:
    from workers.data.results import UpdateResult
    from workers.engines.zero.critic_engine import CriticEngine
    from workers.engines.zero.process_group import ProcessGroupSettings


class CriticWorker(RankWorker):
    """One rank of a critic."""

    def __init__(
        self,
        *,
        rank: int,
        world_size: int,
        settings: ZeroSettings,
        algorithm: Algorithm,
        timeout_s: float,
    ) -> None:
        super().__init__(rank=rank, world_size=world_size, settings=settings, timeout_s=timeout_s)
        self._algorithm = algorithm

    def build_engine(self, group: ProcessGroupSettings) -> CriticEngine:
        """Load the backbone; `group` holds the address at which its ranks meet."""
        from workers.engines.zero.critic_engine import CriticEngine

        return CriticEngine(self._settings, group)

    @property
    def _engine(self) -> CriticEngine:
        return cast("CriticEngine", self._zero)

    @recorded("score")
    def values(self, plan: RankPlan, rows: StepRows) -> pa.RecordBatch:
        """Compute the column `values` of this rank's rows, before the step's updates."""
        table = self._table(rows)
        packed = [packed_rows(table, micro, ()) for micro in plan.micro_batches]
        return as_columns(plan, {"values": self._engine.values(packed)})

    @recorded("learn")
    def train(self, plan: RankPlan, rows: StepRows, *computed: pa.RecordBatch) -> dict[str, float]:
        """Run the step's optimizer updates on `returns`; return metrics equal on every rank.

        The column `values` holds this critic's values at credit time: during the updates those are
        the old values that clipping compares with.
        """
        renamed = {"values": "old_values"}
        read = {"values"} | self._algorithm.value_columns
        table = self._table(rows, computed, names=read, of=plan)
        table = table.rename_columns([renamed.get(name, name) for name in table.column_names])
        names = [name for name in table.column_names if name in self._algorithm.value_columns]
        algorithm = self._algorithm.with_coefficients(plan.coefficients)
        parts = algorithm.loss_reward_parts
        results: list[UpdateResult] = []
        for once in plan.passes:
            updates = [
                [packed_rows(table, micro, names, reward_parts=parts) for micro in update]
                for update in once.updates
            ]
            results += self._engine.train(updates, algorithm)
        steps = float(sum(not update.skipped for update in results))
        return {"critic/steps": steps, **merged_metrics(results, area="critic")}
