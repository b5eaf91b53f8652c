"""CPGD, Clipped Policy Gradient Optimization with Policy Drift (2505.12504).

The clipped policy gradient on LOG-ratios. Runs in the learner's ranks. The drift penalty is
:class:`algorithms.regularizers.PolicyDrift`, added outside every gate; the advantage weightings are
:class:`algorithms.advantages.GroupRelative`.
Notation: w = pi / pi_old, A = advantage, g = d loss / d log pi. Shapes: [N].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.inputs import LossInputs
from algorithms.parts import PolicyLoss
from algorithms.ratios import as_float, clamped_log_ratio
from algorithms.segments import response_position
from algorithms.validation import check_at_least, check_fraction, present


@dataclass(frozen=True, kw_only=True)
class ClippedLogRatio(PolicyLoss):
    """Policy gradient with a clipped log-ratio. CPGD (2505.12504) Eq. 2.

    L = -min(ln w A, clip(ln w; ln(1-low), ln(1+high)) A).
    g = -A, and 0 where (A > 0, w > 1+high) or (A < 0, w < 1-low). No ratio multiplies A: at the
    edge of the clip PPO pushes 1+high times harder (Prop. 1).

    The released code returns the value minus ln pi_old * A, a constant with the same gradient.

    Attributes:
        clip_low: distance of the lower bound from 1; 1 or more removes the lower bound.
        clip_high: distance of the upper bound from 1; `inf` removes it.
        schedule: lambda of the tight-to-loose clip e_i = lambda e + (1 - lambda) e i / |y| along
            the response (i = 1..|y|); 1 keeps the clip constant. The paper gives no value.
        epoch_correction: multiply A by clip(pi_epoch / pi_old; 1-low, 1+high) in passes after the
            first over the same batch (discussion 6.1; untested by the authors). pi_epoch is the
            policy at the start of the pass, column `epoch_logprobs`.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    schedule: float = 1.0
    epoch_correction: bool = False

    def __post_init__(self) -> None:
        check_at_least("clip_low", self.clip_low, 0.0)
        check_at_least("clip_high", self.clip_high, 0.0)
        check_fraction("schedule", self.schedule)

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]
        """Column `old_logprobs`, and `epoch_logprobs` for the multi-epoch correction."""
        names = {"old_logprobs"} | ({"epoch_logprobs"} if self.epoch_correction else set())
        return frozenset(names)

    def _bounds(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Compute the log-ratio bounds (low, high), each [] or [N]."""
        scale = inputs.logprobs.new_ones(())
        if self.schedule < 1.0:
            index, length = response_position(inputs.loss_mask, inputs.sequence_ids)
            progress = index.to(inputs.logprobs.dtype) / length.clamp(min=1)
            scale = self.schedule + (1.0 - self.schedule) * progress
        low = torch.log((1.0 - self.clip_low * scale).clamp(min=0.0))  # -inf when removed
        high = (
            torch.log1p(self.clip_high * scale)
            if math.isfinite(self.clip_high)
            else torch.full_like(scale, math.inf)
        )
        return low, high

    def _advantages(self, inputs: LossInputs) -> Tensor:
        """Return A [N], corrected for the pass over the batch where `epoch_correction` is set."""
        if not self.epoch_correction:
            return inputs.advantages
        epoch = present("epoch_logprobs", inputs.epoch_logprobs)
        drift = clamped_log_ratio(epoch, inputs.old_logprobs).detach().exp()
        return drift.clamp(1.0 - self.clip_low, 1.0 + self.clip_high) * inputs.advantages

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.PolicyLoss`."""
        log_ratio = inputs.logprobs - inputs.old_logprobs
        low, high = self._bounds(inputs)
        advantages = self._advantages(inputs)
        clipped = torch.where(
            advantages > 0, torch.minimum(log_ratio, high), torch.maximum(log_ratio, low)
        )
        return -clipped * advantages

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """See :class:`algorithms.parts.TokenPart`."""
        log_ratio = (inputs.logprobs - inputs.old_logprobs).detach()
        low, high = self._bounds(inputs)
        above = (inputs.advantages > 0) & (log_ratio > high)
        below = (inputs.advantages < 0) & (log_ratio < low)
        return {
            "policy/clip_frac": as_float(above | below, log_ratio),
            "policy/clip_high_frac": as_float(above, log_ratio),
            "policy/clip_low_frac": as_float(below, log_ratio),
        }
