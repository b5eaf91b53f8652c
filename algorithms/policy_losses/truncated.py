"""Losses whose ratio is bounded but never gated: CISPO and SAPO.

Soft alternatives to the PPO clip. Runs in the learner's ranks. Not GPPO, which bounds only the side
that PPO clips. Notation: w = pi / pi_old, g = d loss / d log pi. Shapes: [N].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.inputs import LossInputs
from algorithms.parts import PolicyLoss
from algorithms.ratios import as_float, policy_log_ratio, policy_ratio
from algorithms.validation import check_at_least, check_ordered, check_positive


@dataclass(frozen=True, kw_only=True)
class TruncatedImportance(PolicyLoss):
    """Policy gradient under a truncated importance weight. CISPO (2506.13585) Eq. 4.

    L = -sg(clip(w; ratio_min, ratio_max)) A log pi; g = -clip(w) A.

    Attributes:
        ratio_min: lower bound of w; 0 for none.
        ratio_max: upper bound of w. TRL's form is (0, 5).
    """

    ratio_min: float = 0.8
    ratio_max: float = 1.28

    columns = frozenset({"old_logprobs"})
    exact_gradient = False

    def __post_init__(self) -> None:
        check_at_least("ratio_min", self.ratio_min, 0.0)
        check_ordered("ratio_min", self.ratio_min, "ratio_max", self.ratio_max)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.PolicyLoss`."""
        weight = policy_log_ratio(inputs).detach().exp().clamp(self.ratio_min, self.ratio_max)
        return -weight * inputs.advantages * inputs.logprobs

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """See :class:`algorithms.parts.TokenPart`."""
        ratio = policy_ratio(inputs).detach()
        outside = (ratio < self.ratio_min) | (ratio > self.ratio_max)
        return {"policy/truncated_frac": as_float(outside, ratio)}


@dataclass(frozen=True, kw_only=True)
class SoftAdaptive(PolicyLoss):
    """Policy gradient under a soft gate of the ratio. SAPO (2511.20347).

    L = -(4 / tau) sigmoid(tau (w - 1)) A; g = -4 s (1 - s) w A, s the sigmoid.
    tau is `tau_positive` for A > 0 and `tau_negative` otherwise.

    Attributes:
        tau_positive: temperature for positive advantages.
        tau_negative: temperature for the others; larger decays faster.
    """

    tau_positive: float = 1.0
    tau_negative: float = 1.05

    columns = frozenset({"old_logprobs"})

    def __post_init__(self) -> None:
        check_positive("tau_positive", self.tau_positive)
        check_positive("tau_negative", self.tau_negative)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.PolicyLoss`."""
        ratio, advantages = policy_ratio(inputs), inputs.advantages
        positive = torch.full_like(ratio, self.tau_positive)
        tau = torch.where(advantages > 0, positive, self.tau_negative).detach()
        return -(4.0 / tau) * torch.sigmoid(tau * (ratio - 1.0)) * advantages
