"""One rank of a model under DeepSpeed ZeRO: initialised, stepped, saved, loaded, moved.

The common part of policy and critic. The quantity that is differentiated is the SUM over ranks,
micro-batches, terms and trained tokens of term * weight, on every ZeRO stage: the gradient is the
plain autograd one, however the batch was cut. Runs in every rank of learner, reference and critic.
This class divides by nothing and knows no loss; its subclasses choose the model and what its
forward pass returns.

Every method is collective: all ranks call it, in the same order, with equally many micro-batches.
Ranks that share their micro-batches (`sequence_parallel_size` neighbours) get the same ones, and
each returns results for all of their tokens.

Legend: N tokens of a micro-batch.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor
from transformers.integrations import HfDeepSpeedConfig

from algorithms.inputs import TokenLoss
from workers.data.packing import PackedBatch
from workers.data.results import Rows, StepCounts, UpdateResult
from workers.engines.model.packed_model import PackedModel
from workers.engines.model.self_test import check_model
from workers.engines.zero import checkpoint_files
from workers.engines.zero.gradients import GradientGuard, LossScale, non_finite_tensors
from workers.engines.zero.optimizers import build_optimizer, fit_bucket, move_states
from workers.engines.zero.process_group import (
    ProcessGroupSettings,
    device_of,
    join,
    leave,
    new_sequence_group,
)
from workers.engines.zero.schedules import lr_factor
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings, deepspeed_config
from workers.engines.zero.weighted_loss import MetricSums, reduced_metrics, weighted_sum

#: A micro-batch on this device -> the output of the forward pass [N], with gradient, and its loss.
LossOf = Callable[[PackedBatch], tuple[Tensor, TokenLoss]]


class ZeroRank(ABC):
    """Model under ZeRO on this rank.

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
        self.progress = StepCounts()
        self.sequence_group: dist.ProcessGroup | None = None
        if settings.sequence_parallel_size > 1:
            size = settings.sequence_parallel_size
            self.sequence_group = new_sequence_group(size, timeout_s=group.timeout_s)
        if self.device.type == "cpu" and settings.param_dtype == "float16":
            vars(get_accelerator())["is_fp16_supported"] = lambda: True  # by torch, without them
        config = deepspeed_config(settings, on_gpu=self.device.type == "cuda")
        self.module = self._load(config)
        optimizer = None
        self.module.freeze(settings.freeze, divided=settings.engine_stage == 3)
        if settings.optimizer is not None:
            optimizer = build_optimizer(settings.optimizer, self.module)
            config = fit_bucket(config, optimizer)
        elif settings.engine_stage != 3:
            self.module.requires_grad_(False)
        self._engine: Any = None
        self._guard: GradientGuard | None = None
        if optimizer is None and settings.engine_stage != 3:
            self.module.to(self.device)
        else:
            self._engine, *_ = deepspeed.initialize(
                model=self.module, optimizer=optimizer, config=config, dist_init_required=False
            )
        if optimizer is not None and settings.engine_stage == 0:
            assert settings.optimizer is not None
            self._guard = GradientGuard(optimizer, settings.optimizer.max_grad_norm)
        scaled = settings.has_masters and settings.param_dtype == "float16"
        self.loss_scale = LossScale(self._engine.optimizer) if scaled else None
        check_model(self.module, self.device)

    @abstractmethod
    def build_module(self) -> PackedModel:
        """Read the model of `settings` from its folder; each subclass chooses the class."""

    def _load(self, config: dict[str, Any]) -> PackedModel:
        # While this object lives, transformers partitions weights as it reads them. It is told of
        # float32 only: of 16 bits, it would round rotary frequencies as well as weights.
        plain = {key: value for key, value in config.items() if key not in ("bf16", "fp16")}
        partitioned = HfDeepSpeedConfig(plain) if self.settings.engine_stage == 3 else None
        module = self.build_module()
        del partitioned
        if self.settings.optimizer is not None and self.settings.gradient_checkpointing:
            # ZeRO-3 empties the parameters that non-reentrant checkpointing compares.
            module.enable_gradient_checkpointing(reentrant=self.settings.engine_stage == 3)
        return module

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """Dtype of the matrix products where it is not that of the weights."""
        settings = self.settings
        return None if settings.dtype == settings.param_dtype else getattr(torch, settings.dtype)

    @property
    def load_device(self) -> torch.device | None:
        """Device onto which weights are read; None: the host, out of which ZeRO-3 takes a part."""
        return (
            self.device if self.device.type == "cuda" and self.settings.engine_stage < 3 else None
        )

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

    def forward(self, batch: PackedBatch, *arguments: Any) -> Any:
        """Run the module on a batch on this device, through DeepSpeed where there is an engine."""
        model = self.module if self._engine is None else self._engine
        return model(
            batch.tokens,
            batch.position_ids,
            batch.cu_seqlens,
            batch.loss_mask,
            *arguments,
            prefixes=batch.prefixes,
            **({} if batch.images is None else {"images": batch.images}),
        )

    def take_steps(
        self, updates: Sequence[Sequence[PackedBatch]], loss_of: LossOf
    ) -> tuple[tuple[UpdateResult, ...], Rows, Rows]:
        """Take one optimizer step per update.

        Args:
            updates: `updates[u][k]`, micro-batches with the columns and weights the loss reads.
            loss_of: the forward pass and the unreduced loss of a micro-batch.

        Returns:
            The updates, and the forward pass's outputs and the loss's flags of every row, in
            order.
        """
        self.module.train()
        outputs: list[tuple[PackedBatch, Tensor, Tensor]] = []
        sums, steps = [], []
        for update in updates:
            collected = MetricSums()

            def backward(update: Sequence[PackedBatch] = update) -> Iterator[tuple[Any, ...]]:
                return self._backward(update, loss_of)

            for own, (batch, output, loss, values) in zip(update, backward(), strict=True):
                collected.add(batch, values.metrics, loss)
                # Split at the end: the host need not wait here.
                outputs.append((own, output, values.flags))
            sums.append(collected)
            steps.append(self._step(backward))
        copies = self.settings.sequence_parallel_size
        reduced = reduced_metrics(sums, self.device, copies=copies)
        results = (
            UpdateResult(metrics=metrics, **step)
            for metrics, step in zip(reduced, steps, strict=True)
        )
        rows = (row for batch, output, _ in outputs for row in batch.split(output))
        flags = (row for batch, _, own in outputs for row in batch.split(own))
        return tuple(results), tuple(rows), tuple(flags)

    def _backward(
        self, update: Sequence[PackedBatch], loss_of: LossOf
    ) -> Iterator[tuple[PackedBatch, Tensor, Tensor, TokenLoss]]:
        """Accumulate the gradient of one update; yield (batch, output, loss, its values)."""
        for batch in update:
            batch = batch.to(self.device)
            output, values = loss_of(batch)
            loss = weighted_sum(batch, values)
            # DeepSpeed averages over ranks; the weights are global, so the average is undone. The
            # zeros keep every parameter in the graph where no token of this rank trains.
            self._engine.backward(loss * self.world_size + 0.0 * output.sum())
            yield batch, output.detach(), loss.detach(), values

    def _step(self, backward: Any) -> dict[str, Any]:
        """Take one optimizer step, or none where the gradient is not finite."""
        lr = self.lr
        for parameters in self._engine.optimizer.param_groups:
            parameters["lr"] = lr
        scale = None if self.loss_scale is None else self.loss_scale.value
        norm, applied = self._engine_step()
        step = {"grad_norm": norm, "lr": lr, "skipped": not applied, "loss_scale": scale}
        explained = self.loss_scale is not None and self.loss_scale.count(applied=applied)
        if applied:
            self.progress.steps_taken += 1
            self.progress.skipped_in_a_row = 0
            return step
        self.progress.steps_skipped += 1
        if explained:
            return step
        self.progress.skipped_in_a_row += 1
        # Nothing changed, so the same gradient can be made again and looked at.
        for _ in backward():
            pass
        names = non_finite_tensors(self._engine, self.module.hf_named_parameters())
        self._engine_step()
        return step | {"non_finite": names}

    def _engine_step(self) -> tuple[float, bool]:
        self._engine.step()
        if self._guard is not None:
            return self._guard.norm, self._guard.applied
        return float(self._engine.get_global_grad_norm()), self._engine.was_step_applied()

    def _optimizer_settings(self, purpose: str) -> OptimizerSettings:
        if self.settings.optimizer is None:
            raise ValueError(f"this engine only scores (optimizer is None): it has no {purpose}")
        return self.settings.optimizer

    def snapshot(self) -> checkpoint_files.Snapshot:
        """Copy this rank's part of a checkpoint to host memory; no communication."""
        scale = None if self.loss_scale is None else self.loss_scale.state()
        return checkpoint_files.take_snapshot(
            self._engine, self.module, self.settings, self.progress, loss_scale=scale
        )

    def save(self, folder: str | Path) -> None:
        """Write weights, optimizer, progress and random states; every rank writes its part."""
        self.snapshot().write(Path(folder))
        if self.world_size > 1:
            dist.barrier()

    def load(self, folder: str | Path) -> None:
        """Continue from a checkpoint of this model, of any ZeRO stage and number of ranks.

        With the stage and ranks that saved it, to the bit.

        Raises:
            ValueError: not a checkpoint, a damaged one, or one of another model or optimizer.
        """
        restored = checkpoint_files.load(folder, self._engine, self.module, self.settings)
        self.progress = restored.progress
        if self.loss_scale is not None and restored.loss_scale is not None:
            self.loss_scale.restore(restored.loss_scale)

    def offload_states(self) -> None:
        """Move optimizer state to the host where it is not there, and empty PyTorch's cache."""
        self._move_states(torch.device("cpu"))
        self.empty_cache()

    def reload_states(self) -> None:
        """Bring back what `offload_states` moved."""
        self._move_states(self.device)

    def empty_cache(self) -> None:
        """Give back what PyTorch keeps on the GPU for later: no other process could use it."""
        if self.device.type != "cpu":
            torch.cuda.empty_cache()

    def _move_states(self, device: torch.device) -> None:
        settings = self.settings
        moves = self.device.type != "cpu" and not settings.offload_optimizer
        if moves and settings.optimizer is not None:
            move_states(self._engine, device, stage=settings.engine_stage)

    def device_bytes(self) -> int:
        """Return the memory in use on this rank's device by all processes together; 0 on CPU."""
        if self.device.type == "cpu":
            return 0
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free

    def close(self) -> None:
        """Release the model, and leave the process group if this engine joined it."""
        if self._engine is not None:
            with contextlib.suppress(AttributeError):
                self._engine.destroy()
        self._engine = None
        if self._owns_group:
            leave()
            self._owns_group = False
