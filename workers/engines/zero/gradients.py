"""Checks of gradients before they are used: norm, clipping, scale, the tensors not finite.

ZeRO 1 to 3 clip and refuse non-finite norms themselves; `GradientGuard` does the same for stage 0,
where DeepSpeed hands the gradient to the optimizer unseen. Runs in every rank that trains. Ends no
run: the driver counts skipped updates.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn


class GradientGuard:
    """Guard that clips the reduced gradient right before the optimizer's step, or withholds it.

    Args:
        optimizer: steps only where gradients are; withheld gradients leave its state untouched.
        max_norm: of the global gradient; inf does not clip.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        self._max_norm = max_norm
        self.norm = 0.0
        self.applied = True
        optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        self.norm = float(norm)
        self.applied = bool(torch.isfinite(norm))
        if not self.applied:
            for parameter in parameters:
                parameter.grad = None
        elif self.norm > self._max_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._max_norm, norm)


class LossScale:
    """Power of two by which the loss is multiplied, so that gradients of float16 do not vanish.

    An overflow halves it, and the update is skipped; GROWTH updates in a row double it. DeepSpeed
    multiplies and divides; its own growth is off, because it doubles the scale between the two, and
    every thousandth gradient would be half of what it is.

    Args:
        optimizer: of DeepSpeed, for weights of float16.
    """

    START, SMALLEST, GROWTH = 2.0**16, 1.0, 1000

    def __init__(self, optimizer: Any) -> None:
        self._scaler = optimizer.loss_scaler
        self._scaler.raise_error_at_min_scale = False  # the driver ends a run that only skips
        self._scaler.scale_window = 2**62
        self._scaler.cur_scale = self.value = self.START  # of the next update
        self.updates = 0  # since the scale changed

    def count(self, *, applied: bool) -> bool:
        """Count an update; return True where it was skipped and the scale alone may explain it.

        An overflow under a scale above the smallest one says nothing about the gradient.
        """
        before, self.updates = self.value, self.updates + 1 if applied else 0
        if self.updates == self.GROWTH:
            self._scaler.cur_scale, self.updates = 2 * before, 0
        self.value = float(self._scaler.cur_scale)
        return not applied and before > self.SMALLEST

    def state(self) -> dict[str, float]:
        """Return what a checkpoint holds of it."""
        return {"value": self.value, "updates": self.updates}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from what `state` returned."""
        self.value = self._scaler.cur_scale = float(state["value"])
        self.updates = int(state["updates"])


def non_finite_tensors(
    engine: Any, parameters: Iterable[tuple[str, nn.Parameter]], *, limit: int = 8
) -> tuple[str, ...]:
    """Name the tensors whose accumulated gradient is not finite on any rank, worst first.

    To be called between backward and step; collective. "Worst" is the share of bad elements.
    """
    named = list(parameters)
    partitions = _stage_2_gradients(engine.optimizer)
    shares = []
    for _, parameter in named:
        if hasattr(parameter, "ds_id"):
            gradient = safe_get_full_grad(parameter)
        else:
            gradient = partitions.get(id(parameter), _summed(parameter))
        bad = 0.0
        if gradient is not None:
            bad = float((~torch.isfinite(gradient)).float().mean())
        shares.append(bad)
    share = torch.tensor(shares, device=engine.device)
    dist.all_reduce(share, op=dist.ReduceOp.MAX)
    order = torch.argsort(share, descending=True, stable=True).tolist()
    return tuple(named[index][0] for index in order if share[index] > 0)[:limit]


def _summed(parameter: Any) -> Tensor | None:
    """Return the gradient of all micro-batches; beside weights of 16 bits it is another tensor."""
    for name in ("_hp_grad", "grad_accum"):
        gradient: Tensor | None = getattr(parameter, name, None)
        if gradient is not None:
            return gradient
    return parameter.grad


def _stage_2_gradients(optimizer: Any) -> dict[int, Tensor]:
    """Map the id of each parameter to what ZeRO-2 has reduced so far; empty under other stages.

    DeepSpeed's own accessor reads what its step prepares, which here has not run yet.
    """
    found: dict[int, Tensor] = {}
    if not hasattr(optimizer, "params_in_partition"):
        return found
    sums = (optimizer.all_grad_tensors, optimizer.averaged_gradients)
    for group, gradients in (item for held in sums for item in held.items()):
        # Where the sums are float32 beside weights of 16 bits, paddings lie between them.
        own = [each for each in gradients or () if not getattr(each, "_zero_padding", False)]
        for parameter, gradient in zip(optimizer.params_in_partition[group], own, strict=False):
            found[id(parameter)] = gradient
    return found
