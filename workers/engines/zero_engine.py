"""One rank of a policy under DeepSpeed ZeRO: scores, trains, saves, exports.

Packed micro-batches in; log-probs, entropies and metrics out. What is differentiated is the SUM
over ranks, micro-batches, terms and trained tokens of term * weight, on every ZeRO stage: the
gradient is the plain autograd one, however the batch was cut. The engine knows neither Ray nor the
algorithm, and divides by nothing.

Every method is collective: all ranks call it, in the same order, with equally many micro-batches.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.integrations import HfDeepSpeedConfig

from workers.engines import checkpoint_files
from workers.engines.gradients import GradientGuard, non_finite_tensors
from workers.engines.hf_export import export_hf
from workers.engines.optimizers import build_optimizer, move_states
from workers.engines.policy_model import PolicyModel, load_policy_model
from workers.engines.process_group import ProcessGroupSettings, device_of, join, leave
from workers.engines.results import Progress, Scores, TrainResult, UpdateResult
from workers.engines.schedules import lr_factor
from workers.engines.weighted_loss import (
    MetricSums,
    TokenLossAlgorithm,
    check_columns,
    loss_inputs,
    reduced_metrics,
    weighted_sum,
)
from workers.engines.zero_settings import OptimizerSettings, ZeroSettings, deepspeed_config
from workers.packing import PackedBatch, pack_sequences
from workers.weight_sync.source import ZeroSource


class ZeroEngine:
    """A policy under ZeRO on this rank.

    Args:
        settings: model, stage, optimizer.
        group: where this rank stands; a process group that exists already is used as it is.
    """

    def __init__(self, settings: ZeroSettings, group: ProcessGroupSettings | None = None) -> None:
        group = group or ProcessGroupSettings()
        self.settings = settings
        self.device = device_of(group)
        self._owns_group = join(group)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.progress = Progress()
        config = deepspeed_config(settings)
        self.policy = self._load(config)
        optimizer = None
        if settings.optimizer is not None:
            optimizer = build_optimizer(settings.optimizer, self.policy)
        elif settings.engine_stage != 3:
            self.policy.requires_grad_(False)
        self._engine: Any = None
        self._guard: GradientGuard | None = None
        if optimizer is None and settings.engine_stage != 3:
            self.policy.to(self.device)
            return
        self._engine, *_ = deepspeed.initialize(
            model=self.policy,
            optimizer=optimizer,
            config=config,
            dist_init_required=False,
        )
        if optimizer is not None and settings.engine_stage == 0:
            assert settings.optimizer is not None
            self._guard = GradientGuard(optimizer, settings.optimizer.max_grad_norm)

    def _load(self, config: dict[str, Any]) -> PolicyModel:
        # transformers asks this object whether to partition weights while it reads them. It is
        # let go afterwards, so that another engine of this process may run another stage.
        partitioned = HfDeepSpeedConfig(config) if self.settings.engine_stage == 3 else None
        policy = load_policy_model(
            self.settings.model,
            attention=self.settings.attention,
            autocast=torch.bfloat16 if self.settings.dtype == "bf16" else None,
            head_chunk=self.settings.head_chunk,
        )
        del partitioned
        if self.settings.optimizer is not None and self.settings.gradient_checkpointing:
            # ZeRO-3 empties the parameters that non-reentrant checkpointing compares.
            policy.enable_gradient_checkpointing(reentrant=self.settings.engine_stage == 3)
        return policy

    @property
    def hf_model(self) -> nn.Module:
        """The Hugging Face module, whose parameter names are those of a checkpoint."""
        return self.policy.model

    @property
    def lr(self) -> float:
        """Learning rate of the next optimizer step."""
        optimizer = self._optimizer_settings("lr")
        return optimizer.lr * lr_factor(
            optimizer.schedule,
            steps_taken=self.progress.steps_taken,
            warmup_steps=optimizer.warmup_steps,
            total_steps=optimizer.total_steps,
        )

    def score(
        self, micro_batches: Sequence[PackedBatch], *, temperature: float, entropy: bool = False
    ) -> Scores:
        """Log-probs, and entropies if asked, of every row; no gradient is kept."""
        logprobs: list[npt.NDArray[np.float32]] = []
        entropies: list[npt.NDArray[np.float32]] = []
        self.policy.eval()
        with torch.no_grad():
            for batch in micro_batches:
                scored, uncertainty = self._forward(batch, temperature, entropy)
                logprobs += batch.split(scored)
                if uncertainty is not None:
                    entropies += batch.split(uncertainty)
        return Scores(logprobs=tuple(logprobs), entropies=tuple(entropies) if entropy else None)

    def probe(self, sequences: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.float32], ...]:
        """Log-probs at temperature 1 of every token but the first, as training computes them."""
        return self.score([pack_sequences(sequences)], temperature=1.0).logprobs

    def train(
        self,
        updates: Sequence[Sequence[PackedBatch]],
        algorithm: TokenLossAlgorithm,
        *,
        temperature: float,
        old_is_current: bool = False,
    ) -> TrainResult:
        """Take one optimizer step per update.

        Args:
            updates: `updates[u][k]`, micro-batches with the columns and weights the loss reads.
            algorithm: computes the per-token loss.
            temperature: the logits are divided by it, as they were when sampling.
            old_is_current: the policy that started the step is the current one, so that columns
                of the old policy need not be given; one update only.

        Raises:
            ValueError: a column or a term's weights are missing.
        """
        self._optimizer_settings("training")
        if old_is_current and len(updates) > 1:
            raise ValueError(
                f"old_is_current with {len(updates)} updates: after the first the old policy is "
                "another one; give old_logprobs or train one update"
            )
        for batch in (batch for update in updates for batch in update):
            check_columns(batch, algorithm, old_is_current=old_is_current)
        self.policy.train()
        logprobs: list[npt.NDArray[np.float32]] = []
        sums, steps = [], []
        for update in updates:
            collected = MetricSums()

            def backward(update: Sequence[PackedBatch] = update) -> Iterator[tuple[Any, ...]]:
                return self._backward(update, algorithm, temperature, old_is_current)

            for batch, current, loss, metrics in backward():
                collected.add(batch, metrics, loss)
                logprobs += batch.split(current)
            sums.append(collected)
            steps.append(self._step(backward))
        reduced = reduced_metrics(sums, self.device)
        results = (
            UpdateResult(metrics=metrics, **step)
            for metrics, step in zip(reduced, steps, strict=True)
        )
        return TrainResult(updates=tuple(results), logprobs=tuple(logprobs))

    def _backward(
        self,
        update: Sequence[PackedBatch],
        algorithm: TokenLossAlgorithm,
        temperature: float,
        old_is_current: bool,
    ) -> Iterator[tuple[PackedBatch, Tensor, Tensor, Any]]:
        """Accumulate the gradient of one update; yields (batch, logprobs, loss, metrics)."""
        entropy = bool({"entropy", "old_entropy"} & algorithm.loss_columns)
        for batch in update:
            batch = batch.to(self.device)
            logprobs, uncertainty = self._forward(batch, temperature, entropy)
            inputs = loss_inputs(batch, logprobs, uncertainty, old_is_current=old_is_current)
            values = algorithm.token_loss(inputs)
            loss = weighted_sum(batch, values)
            # DeepSpeed averages over ranks; the weights are global, so the average is undone. The
            # zeros keep every parameter in the graph where no token of this rank trains.
            self._engine.backward(loss * self.world_size + 0.0 * logprobs.sum())
            yield batch, logprobs.detach(), loss.detach(), values.metrics

    def _forward(
        self, batch: PackedBatch, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        batch = batch.to(self.device)
        model = self.policy if self._engine is None else self._engine
        return model(
            batch.tokens,
            batch.position_ids,
            batch.cu_seqlens,
            batch.loss_mask,
            temperature,
            entropy,
        )

    def _step(self, backward: Any) -> dict[str, Any]:
        """One optimizer step, or none where the gradient is not finite."""
        lr = self.lr
        for parameters in self._engine.optimizer.param_groups:
            parameters["lr"] = lr
        norm, applied = self._engine_step()
        if applied:
            self.progress.steps_taken += 1
            self.progress.skipped_in_a_row = 0
            return {"grad_norm": norm, "lr": lr, "skipped": False}
        self.progress.steps_skipped += 1
        self.progress.skipped_in_a_row += 1
        # Nothing changed, so the same gradient can be made again and looked at.
        for _ in backward():
            pass
        names = non_finite_tensors(self._engine, self.policy.hf_named_parameters())
        self._engine_step()
        return {"grad_norm": norm, "lr": lr, "skipped": True, "non_finite": names}

    def _engine_step(self) -> tuple[float, bool]:
        self._engine.step()
        if self._guard is not None:
            return self._guard.norm, self._guard.applied
        return float(self._engine.get_global_grad_norm()), self._engine.was_step_applied()

    def _optimizer_settings(self, what: str) -> OptimizerSettings:
        if self.settings.optimizer is None:
            raise ValueError(f"this engine only scores (optimizer is None): it has no {what}")
        return self.settings.optimizer

    def save(self, folder: str | Path) -> None:
        """Write weights, optimizer, progress and random states; every rank its part."""
        self._optimizer_settings("checkpoint")
        checkpoint_files.save(folder, self._engine, self.policy, self.settings, self.progress)

    def load(self, folder: str | Path) -> None:
        """Continue to the bit from `save`, with equal model, stage and ranks.

        Raises:
            ValueError: not a checkpoint, an incomplete one, or one of another model or layout.
        """
        self._optimizer_settings("checkpoint")
        values = checkpoint_files.load(folder, self._engine, self.policy, self.settings)
        self.progress = Progress(**values)

    def export_hf(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write a Hugging Face folder, shard by shard; rank 0 writes."""
        weights = ZeroSource(self.hf_model, rank=self.rank, world_size=self.world_size, dtype=dtype)
        export_hf(
            folder,
            weights,
            config=self.policy.model.config,
            source=self.settings.model,
            dtype=dtype,
            writes=self.rank == 0,
        )
        if self.world_size > 1:
            dist.barrier()

    def offload_states(self) -> None:
        """Move optimizer and gradient state to the host; nothing to do where it is there."""
        if self.device.type != "cpu" and self.settings.optimizer is not None:
            move_states(self._engine, torch.device("cpu"), stage=self.settings.engine_stage)

    def reload_states(self) -> None:
        """Bring back what `offload_states` moved."""
        if self.device.type != "cpu" and self.settings.optimizer is not None:
            move_states(self._engine, self.device, stage=self.settings.engine_stage)

    def close(self) -> None:
        """Release the model, and leave the process group if this engine joined it."""
        if self._engine is not None:
            with contextlib.suppress(AttributeError):
                self._engine.destroy()
        self._engine = None
        if self._owns_group:
            leave()
            self._owns_group = False
