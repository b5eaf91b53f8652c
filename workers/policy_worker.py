"""The policy role: one DeepSpeed rank in a Ray actor, as learner, actor or reference.

Plans and references to Arrow batches in; Arrow columns, metrics and published weights out. Every
rank of a group is called with the same method at the same time, because ZeRO's collectives are in
lock-step. What a rank computes is in `engines/zero_engine.py`; here its rows become packed
micro-batches and its answers become columns.
"""

from __future__ import annotations

import gc
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.util
import torch

from algorithms.algorithm import Algorithm
from workers.credit import assign_credit
from workers.engines.zero_settings import ZeroSettings
from workers.packing import PackedBatch, pack
from workers.plans import CreditPlan, MicroBatchPlan, RankPlan, Slice, step_table
from workers.trajectory import computed_columns, join_computed
from workers.weight_client import EngineClient

if TYPE_CHECKING:
    from workers.engines.results import Rows, TrainResult
    from workers.engines.zero_engine import ZeroEngine
    from workers.weight_sync.publication import PublishReport, TrainerEndpoint

# DeepSpeed takes seconds to import, and the driver imports this module to launch its actors; so the
# engine is imported where it starts.

TOKEN_COLUMNS = ("tokens", "loss_mask")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainReport:
    """One rank's view of a step's updates.

    Attributes:
        metrics: over all ranks; averaged over the step's updates.
        steps_taken: updates that were applied.
        non_finite: tensors whose gradient was not finite, for the updates that were skipped.
        gap_sum, gap_max, gap_tokens: |log pi_old - log mu| over this rank's trained tokens.
    """

    metrics: Mapping[str, float]
    steps_taken: int
    non_finite: tuple[str, ...]
    gap_sum: float
    gap_max: float
    gap_tokens: int


class PolicyWorker:
    """One rank of a policy."""

    def __init__(
        self,
        *,
        run_id: str,
        rank: int,
        world_size: int,
        settings: ZeroSettings,
        algorithm: Algorithm,
        temperature: float,
        timeout_s: float,
    ) -> None:
        self._run_id, self._rank, self._world_size = run_id, rank, world_size
        self._settings, self._algorithm, self._temperature = settings, algorithm, temperature
        self._timeout_s = timeout_s
        self._engine: ZeroEngine
        self._endpoint: TrainerEndpoint | None = None

    def open_port(self) -> str:
        """`host:port` on this node where the ranks may meet."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{listener.getsockname()[1]}"

    def start(self, address: str) -> None:
        """Join the other ranks at `host:port` and load the model."""
        from workers.engines.process_group import ProcessGroupSettings
        from workers.engines.zero_engine import ZeroEngine

        host, port = address.rsplit(":", 1)
        devices = ray.get_gpu_ids()
        group = ProcessGroupSettings(
            rank=self._rank,
            world_size=self._world_size,
            address=host,
            port=int(port),
            backend="nccl" if devices else "gloo",
            timeout_s=self._timeout_s,
        )
        self._engine = ZeroEngine(self._settings, group)
        gc.collect()
        gc.freeze()  # full collections over all that is imported would stall the steps

    def shape(self) -> dict[str, int]:
        """What a sequence costs: parameters, layers, hidden size."""
        from workers.weight_sync.source import ZeroSource

        config = self._engine.policy.model.config.get_text_config()
        parameters = ZeroSource(self._engine.hf_model).metadata()
        return {
            "num_parameters": sum(parameter.num_elements for parameter in parameters),
            "num_layers": int(config.num_hidden_layers),
            "hidden_size": int(config.hidden_size),
        }

    # ---- a step ----

    def score(
        self,
        plan: RankPlan,
        slices: Sequence[Slice],
        logprobs: str,
        entropy: str | None,
        *batches: pa.RecordBatch,
    ) -> pa.RecordBatch:
        """No-grad log-probs, and entropies if named, of this rank's rows.

        Args:
            plan: this rank's rows.
            slices: the step's rows in `batches`.
            logprobs: name of the column of log-probs.
            entropy: name of the column of entropies, or None.
            batches: trajectories.
        """
        table = step_table(slices, batches)
        packed = [self._pack(table, micro, ()) for micro in plan.micro_batches]
        scored = self._engine.score(
            packed, temperature=self._temperature, entropy=entropy is not None
        )
        columns = {logprobs: scored.logprobs}
        if entropy is not None and scored.entropies is not None:
            columns[entropy] = scored.entropies
        return _as_columns(plan, columns)

    def credit(
        self,
        plan: CreditPlan,
        slices: Sequence[Slice],
        num_computed: int,
        *batches: pa.RecordBatch,
    ) -> tuple[pa.RecordBatch, Mapping[str, float]]:
        """Advantages of the whole step; `batches` are computed columns, then trajectories."""
        table = join_computed(step_table(slices, batches[num_computed:]), batches[:num_computed])
        return assign_credit(self._algorithm, plan, table)

    def train(
        self,
        plan: RankPlan,
        slices: Sequence[Slice],
        num_computed: int,
        *batches: pa.RecordBatch,
    ) -> tuple[pa.RecordBatch, TrainReport]:
        """The step's optimizer updates; log-probs of this rank's rows as each was trained.

        Where no column holds pi_old, it is the policy that the one update of the step starts from.
        """
        table = join_computed(step_table(slices, batches[num_computed:]), batches[:num_computed])
        names = [name for name in table.column_names if name in self._read_columns()]
        updates = [[self._pack(table, micro, names) for micro in update] for update in plan.updates]
        result = self._engine.train(
            updates,
            self._algorithm,
            temperature=self._temperature,
            old_is_current="old_logprobs" not in names and len(updates) == 1,
        )
        return _as_columns(plan, {"logprobs": result.logprobs}), _report(updates, result)

    def _read_columns(self) -> frozenset[str]:
        """Per-token columns of the table that the loss, or the mismatch metric, reads."""
        return self._algorithm.loss_columns | {"advantages", "rollout_logprobs", "old_logprobs"}

    @staticmethod
    def _pack(table: pa.Table, micro: MicroBatchPlan, names: Sequence[str]) -> PackedBatch:
        rewards = np.zeros(table.num_rows, dtype=np.float32)
        if "reward" in table.column_names:
            rewards[micro.rows] = table.column("reward").take(pa.array(micro.rows)).to_numpy()
        weights = {}
        for name, own in micro.weights.items():
            weights[name] = np.zeros(table.num_rows, dtype=np.float32)
            weights[name][micro.rows] = own
        return pack(
            {name: table.column(name) for name in (*TOKEN_COLUMNS, *names)},
            micro.rows,
            sequence_columns={"rewards": rewards},
            weights=weights,
        )

    # ---- weights ----

    def connect(
        self, transport: str, dtype: str, engines: Sequence[Any], workers_per_engine: int
    ) -> None:
        """Meet the rollout engines, to which `publish` will send weights as `dtype`."""
        from workers.weight_sync.source import ZeroSource
        from workers.weight_sync.transport import trainer_endpoint

        client = EngineClient(engines, timeout_s=self._timeout_s) if self._rank == 0 else None
        self._endpoint = trainer_endpoint(
            transport,
            source=ZeroSource(
                self._engine.hf_model,
                rank=self._rank,
                world_size=self._world_size,
                dtype=getattr(torch, dtype),
            ),
            client=client,
            run_id=self._run_id,
            num_engines=len(engines),
            workers_per_engine=workers_per_engine,
            host=ray.util.get_node_ip_address(),
            timeout_s=self._timeout_s,
        )
        self._endpoint.connect()

    def publish(self, version: int) -> PublishReport:
        """Send the present weights to every engine and label them."""
        if self._endpoint is None:
            raise RuntimeError("publish before connect")
        return self._endpoint.publish(version)

    def parameter_names(self) -> list[str]:
        """Every parameter that a publication must deliver, from the module itself."""
        from workers.weight_sync.source import expected_names

        return expected_names(self._engine.hf_model)

    def probe(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs of fixed sequences at temperature 1, first tokens 0.0."""
        return [row.tolist() for row in self._engine.probe(sequences)]

    # ---- life ----

    def save(self, folder: str) -> None:
        """Write this rank's part of a checkpoint."""
        self._engine.save(Path(folder))

    def load(self, folder: str) -> None:
        """Continue from a checkpoint."""
        self._engine.load(Path(folder))

    def export(self, folder: str) -> None:
        """Write the policy as a Hugging Face folder."""
        self._engine.export_hf(Path(folder))

    def close(self) -> None:
        """Leave the other ranks in order."""
        if self._endpoint is not None:
            self._endpoint.shutdown()
        self._engine.close()


def _as_columns(plan: RankPlan, columns: Mapping[str, Rows]) -> pa.RecordBatch:
    """Per-sequence arrays, in the order of the plan's rows, as columns keyed by row."""
    rows = np.concatenate([micro.rows for micro in plan.micro_batches])
    some = next(iter(columns.values()))
    lengths = np.asarray([len(values) for values in some], dtype=np.int64)
    empty = np.zeros(0, dtype=np.float32)
    flat = {name: np.concatenate([empty, *values]) for name, values in columns.items()}
    return computed_columns(rows, lengths, **flat)


def _report(updates: Sequence[Sequence[PackedBatch]], result: TrainResult) -> TrainReport:
    """Join the updates of a step, and measure how far the sampler was from pi_old."""
    count = len(result.updates)
    metrics: dict[str, float] = {}
    for update in result.updates:
        own = {
            **{_named(name): value for name, value in update.metrics.items()},
            "learner/grad_norm": update.grad_norm,
            "learner/lr": update.lr,
        }
        for name, value in own.items():
            metrics[name] = metrics.get(name, 0.0) + value / count
    gaps = _gaps(updates, result)
    return TrainReport(
        metrics=metrics,
        steps_taken=sum(not update.skipped for update in result.updates),
        non_finite=tuple(name for update in result.updates for name in update.non_finite),
        gap_sum=float(gaps.sum()),
        gap_max=float(gaps.max(initial=0.0)),
        gap_tokens=len(gaps),
    )


def _named(name: str) -> str:
    return name if "/" in name else f"learner/{name}"


def _gaps(updates: Sequence[Sequence[PackedBatch]], result: TrainResult) -> np.ndarray:
    """|log pi_old - log mu| of every trained token."""
    rows = iter(result.logprobs)
    gaps = [np.zeros(0, dtype=np.float32)]
    for batch in (batch for update in updates for batch in update):
        current = [next(rows) for _ in range(batch.num_rows)]
        if not batch.num_rows:
            continue
        mask = batch.loss_mask.numpy()
        old = batch.columns.get("old_logprobs")
        learner = np.concatenate(current) if old is None else old.numpy()
        gaps.append(np.abs(learner - batch.columns["rollout_logprobs"].numpy())[mask])
    return np.concatenate(gaps)
