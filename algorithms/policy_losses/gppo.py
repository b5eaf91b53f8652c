"""GPPO and CE-GPPO: clipping that keeps a gradient for clipped tokens.

Klear-Reasoner's GPPO (2508.07629) and its generalisation CE-GPPO (2509.20712). Runs in the
learner's ranks. Not the truncation of every ratio, which is CISPO.
Notation: w = pi / pi_old. Shapes: [N].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.inputs import LossInputs
from algorithms.parts import PolicyLoss
from algorithms.policy_losses.clipped import check_clip, clip_metrics
from algorithms.ratios import policy_ratio, straight_through_one
from algorithms.validation import check_at_least


@dataclass(frozen=True, kw_only=True)
class GradientPreservingClip(PolicyLoss):
    """Clipped PPO objective that keeps a gradient for clipped tokens.

    L = -F A; g = -F A with F = w, except for clipped tokens:
    F = beta_low (1-low)   where A < 0 and w < 1-low,
        beta_high (1+high) where A > 0 and w > 1+high,
        0                  where A < 0 and w > dual_clip (the value stays -dual_clip A).
    beta_low = beta_high = 1 is GPPO, whose value is PPO's; 0, 0 has PPO's gradient.

    Attributes:
        clip_low, clip_high: bounds as in PPO.
        beta_low: 1 GPPO; CE-GPPO 0.5 (1.5B) and 0.75 (7B).
        beta_high: 1.
        dual_clip: c, or None.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    beta_low: float = 1.0
    beta_high: float = 1.0
    dual_clip: float | None = 10.0

    columns = frozenset({"old_logprobs"})
    exact_gradient = False

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high, self.dual_clip)
        check_at_least("beta_low", self.beta_low, 0.0)
        check_at_least("beta_high", self.beta_high, 0.0)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.PolicyLoss`."""
        low, high = 1.0 - self.clip_low, 1.0 + self.clip_high
        ratio, advantages = policy_ratio(inputs), inputs.advantages
        one = straight_through_one(inputs.logprobs)
        upper = math.inf if self.dual_clip is None else self.dual_clip
        negative = torch.where(ratio < low, self.beta_low * low * one, ratio.clamp(max=upper))
        positive = torch.where(ratio > high, self.beta_high * high * one, ratio)
        return -torch.where(advantages > 0, positive, negative) * advantages

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """See :class:`algorithms.parts.TokenPart`."""
        low, high = 1.0 - self.clip_low, 1.0 + self.clip_high
        ratio = policy_ratio(inputs).detach()
        return clip_metrics(ratio, inputs.advantages, low, high, self.dual_clip)
