"""Run the policy role: one DeepSpeed rank in a Ray actor, as learner, actor or reference.

Plans and references to Arrow batches in; Arrow columns, metrics and published weights out. Rows
become packed micro-batches here, and results become columns; the computation is in
`workers/engines/zero/policy_engine.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import ray.util
import torch

from algorithms.algorithm import Algorithm
from workers.data.images.rows import ImageReader
from workers.data.images.settings import is_supported, read_image_settings
from workers.data.micro_batches import as_columns, packed_rows, with_staleness, with_turn_numbers
from workers.data.plans import FLAGS, CreditPlan, RankPlan, StepRows
from workers.data.probe import ProbeSequence
from workers.engines.zero.settings import ZeroSettings
from workers.learner.credit import assign_credit
from workers.learner.passes import Trained, train_passes
from workers.learner.rank_worker import RankWorker
from workers.learner.step_metrics import merged_metrics
from workers.learner.weight_client import Destination, EngineClient
from workers.spans import recorded

if TYPE_CHECKING:
    from workers.engines.zero.policy_engine import PolicyEngine
    from workers.engines.zero.process_group import ProcessGroupSettings
    from workers.engines.zero.weights import ZeroSource
    from workers.weight_sync.endpoint import PublishReport, TrainerEndpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainReport:
    """One rank's report of a step's updates.

    Example, two updates of which none was skipped:
        TrainReport(
            metrics={"learner/loss": -0.012, "learner/grad_norm": 0.42, "learner/lr": 1e-6},
            steps_taken=2,
            non_finite=(),
            skipped_in_a_row=0,
            gap_sum=0.256,
            gap_max=0.031,
            gap_tokens=512,
        )

    Attributes:
        metrics: over all ranks and the step's updates; see `merged_metrics`.
        steps_taken: updates that were applied.
        non_finite: tensors whose gradient was not finite, for the updates that were skipped.
        skipped_in_a_row: the longest run of skipped updates that ends in this step or goes on.
        gap_sum, gap_max, gap_tokens: |log pi_old - log mu| over this rank's trained tokens.
    """

    metrics: Mapping[str, float]
    steps_taken: int
    non_finite: tuple[str, ...]
    skipped_in_a_row: int
    gap_sum: float
    gap_max: float
    gap_tokens: int


class PolicyWorker(RankWorker):
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
        super().__init__(rank=rank, world_size=world_size, settings=settings, timeout_s=timeout_s)
        self._run_id, self._algorithm, self._temperature = run_id, algorithm, temperature
        self._endpoint: TrainerEndpoint | None = None
        self._client: EngineClient | None = None
        self._images: ImageReader | None = None

    def build_engine(self, group: ProcessGroupSettings) -> PolicyEngine:
        """Load the policy; `group` holds the address at which its ranks meet."""
        from workers.engines.zero.policy_engine import PolicyEngine

        return PolicyEngine(self._settings, group)

    @property
    def _engine(self) -> PolicyEngine:
        return cast("PolicyEngine", self._zero)

    # ---- a step ----

    @recorded("score")
    def compute_logprobs(
        self,
        plan: RankPlan,
        rows: StepRows,
        logprobs: str,
        entropy: str | None,
        *,
        base: bool = False,
    ) -> pa.RecordBatch:
        """Compute no-grad log-probs, and entropies if named, of this rank's rows.

        Args:
            plan: this rank's rows.
            rows: of the step.
            logprobs: name of the column of log-probs.
            entropy: name of the column of entropies, or None.
            base: True for the model under the policy's adapter, instead of the policy.
        """
        table = self._table(rows)
        images = self._reader().of_table(table)
        packed = [packed_rows(table, micro, (), images) for micro in plan.micro_batches]
        scored = self._engine.compute_logprobs(
            packed, temperature=self._temperature, entropy=entropy is not None, base=base
        )
        columns = {logprobs: scored.logprobs}
        if entropy is not None and scored.entropies is not None:
            columns[entropy] = scored.entropies
        return as_columns(plan, columns)

    @recorded("credit")
    def credit(
        self, plan: CreditPlan, rows: StepRows, *computed: pa.RecordBatch
    ) -> tuple[pa.RecordBatch, Mapping[str, float]]:
        """Compute the advantages of the whole step, keyed by row, and metrics."""
        table = self._table(rows, computed, names=self._algorithm.credit_columns)
        return assign_credit(self._algorithm.with_coefficients(plan.coefficients), plan, table)

    @recorded("learn")
    def train(
        self, plan: RankPlan, rows: StepRows, *computed: pa.RecordBatch
    ) -> tuple[pa.RecordBatch, TrainReport]:
        """Run the step's optimizer updates.

        Without a column for it, pi_old is the policy from which the step's one update starts.

        Returns:
            Columns `logprobs` and `loss_flags` of the last pass's rows, as each was trained, and
            the report.
        """
        read = self._read_columns()
        table = self._table(rows, computed, names=read, of=plan)
        if "staleness" in read:
            table = with_staleness(table, plan.version)
        if "turn_numbers" in read:
            table = with_turn_numbers(table)
        names = [name for name in table.column_names if name in read]
        images, parts = self._reader().of_table(table), self._algorithm.loss_reward_parts
        skipped = self._engine.progress.skipped_in_a_row
        trained = train_passes(
            self._engine,
            self._algorithm.with_coefficients(plan.coefficients),
            (
                [
                    [packed_rows(table, micro, names, images, parts) for micro in update]
                    for update in once.updates
                ]
                for once in plan.passes
            ),
            temperature=self._temperature,
            old_is_current="old_logprobs" not in names and len(plan.updates) == 1,
        )
        found = {"logprobs": trained.logprobs, FLAGS: trained.flags}
        columns = as_columns(plan.passes[-1], found)
        return columns, _report(trained, skipped)

    def _reader(self) -> ImageReader:
        """Return the reader of images, which keeps a step's pixels."""
        if self._images is None:
            path = self._settings.model
            supported = is_supported(path)
            limit = self._settings.max_pixels
            self._images = ImageReader(
                read_image_settings(path, max_pixels=limit) if supported else None
            )
        return self._images

    def _read_columns(self) -> frozenset[str]:
        """Return the per-token columns that the loss, or a metric of every algorithm, reads."""
        measured = {"rollout_logprobs", "old_logprobs", "ref_logprobs"}
        return self._algorithm.loss_columns | {"advantages"} | measured

    # ---- weights ----

    def connect(self, to: Destination) -> None:
        """Connect to the rollout engines, to which `publish` will send weights.

        A second call, after an engine joined or was lost, connects to all of them anew.
        """
        from workers.engines.zero.lora_weights import publication_source
        from workers.weight_sync.endpoint import Route
        from workers.weight_sync.transport import trainer_endpoint

        if self._endpoint is not None:
            self._endpoint.shutdown()
        client = EngineClient(to.engines, timeout_s=to.timeout_s) if self._rank == 0 else None
        self._client = client
        self._endpoint = trainer_endpoint(
            to.transport,
            source=publication_source(
                self._engine.hf_model,
                self._settings.adapter,
                rank=self._rank,
                world_size=self._world_size,
                dtype=getattr(torch, to.dtype),
            ),
            client=client,
            route=Route(
                run_id=self._run_id,
                node=ray.get_runtime_context().get_node_id(),
                engine_nodes=[to.nodes[number] for number in to.engines.ranks],
                workers_per_engine=to.workers_per_engine,
                host=ray.util.get_node_ip_address(),
                timeout_s=to.timeout_s,
            ),
        )
        self._endpoint.connect()

    @recorded("publish")
    def publish(self, version: int) -> PublishReport:
        """Send the present weights to every engine and label them."""
        if self._endpoint is None:
            raise RuntimeError("publish before connect")
        report = self._endpoint.publish(version)
        return replace(report, lost=frozenset(self._client.lost if self._client else ()))

    def num_layers(self) -> int:
        """Return the number of pieces into which `read_layer` divides the policy."""
        return self._source().num_layers

    @recorded("follow")
    def read_layer(self, number: int) -> tuple[dict[str, Any] | None, None]:
        """Gather a layer; return full tensors as float32 arrays on rank 0, None elsewhere.

        Collective. float32 holds bf16 and float16 exactly. The second answer is empty: the driver
        waits for it instead of for the tensors, which stay in the object store.
        """
        tensors = self._source().layer(number)
        if self._rank:
            return None, None
        return {name: tensor.float().cpu().numpy() for name, tensor in tensors}, None

    @recorded("follow")
    def move_layer(self, share: float, tensors: Mapping[str, Any]) -> int:
        """Move a layer by `share` towards another policy's; return the number of tensors moved."""
        source = self._source()
        for name, values in tensors.items():
            source.move(name, torch.tensor(values), share)
        return len(tensors)

    def _source(self) -> ZeroSource:
        from workers.engines.zero.weights import ZeroSource

        return ZeroSource(self._engine.hf_model, rank=self._rank, world_size=self._world_size)

    def parameter_names(self) -> list[str]:
        """List every parameter that a publication must deliver, from the module itself."""
        from workers.engines.zero.lora_weights import published_name
        from workers.engines.zero.weights import expected_names

        model = self._engine.hf_model
        return expected_names(model, published_name(model, self._settings.adapter))

    @recorded("attest")
    def probe(
        self, sequences: Sequence[ProbeSequence], engine_dtype: str | None = None
    ) -> list[list[float]]:
        """Compute log-probs of sequences at temperature 1; see `PolicyEngine.probe`."""
        images = self._reader().of_spans(
            [one.images for one in sequences], lambda row, number: sequences[row].files[number]
        )
        tokens = [one.tokens for one in sequences]
        scored = self._engine.probe(tokens, engine_dtype=engine_dtype, images=images)
        return [row.tolist() for row in scored]

    # ---- life ----

    def export(self, folder: str) -> None:
        """Write the policy as a Hugging Face folder."""
        self._engine.export_hf(Path(folder))

    def close(self) -> None:
        """Leave the other ranks in order."""
        if self._endpoint is not None:
            self._endpoint.shutdown()
        super().close()


def _report(trained: Trained, skipped: int) -> TrainReport:
    """Join the updates of a step; `skipped` updates in a row came before it."""
    runs = list(
        accumulate(
            (update.skipped for update in trained.updates),
            lambda run, now: run + 1 if now else 0,
            initial=skipped,
        )
    )
    return TrainReport(
        metrics=merged_metrics(trained.updates, area="learner"),
        steps_taken=sum(not update.skipped for update in trained.updates),
        non_finite=tuple(name for update in trained.updates for name in update.non_finite),
        skipped_in_a_row=max(runs[1:], default=0),
        gap_sum=float(trained.gaps.sum()),
        gap_max=float(trained.gaps.max(initial=0.0)),
        gap_tokens=len(trained.gaps),
    )
