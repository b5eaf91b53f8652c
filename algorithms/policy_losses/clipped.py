"""PPO-style clipped ratios and the plain policy gradient.

PPO, dual clip, GRPO, DAPO (one class, different bounds) and REINFORCE. Runs in the learner's ranks.
The clipping of log-ratios is :mod:`algorithms.policy_losses.cpgd`.
Notation: w = pi / pi_old, A = advantage, g = d loss / d log pi. Shapes: [N].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.inputs import LossInputs
from algorithms.parts import PolicyLoss
from algorithms.ratios import as_float, policy_log_ratio, policy_ratio
from algorithms.validation import check_at_least, check_number, check_positive


def check_clip(clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    """Check bounds 1 - clip_low < 1 < 1 + clip_high < dual_clip."""
    check_at_least("clip_low", clip_low, 0.0)
    check_at_least("clip_high", clip_high, 0.0)
    if dual_clip is None:
        return
    check_number("dual_clip", dual_clip)
    if not dual_clip > 1.0:
        raise ValueError(f"dual_clip={dual_clip} is not above 1; use a bound such as 3 or null")


def clipped_weight(
    ratio: Tensor, advantages: Tensor, low: float, high: float, dual_clip: float | None
) -> Tensor:
    """Return the factor F [N] of the PPO objective F * A: the pessimistic side of the clip only.

    A > 0: min(w, high). A <= 0: max(w, low), and at most `dual_clip`.
    """
    pessimistic = ratio.clamp(min=low, max=dual_clip)
    return torch.where(advantages > 0, ratio.clamp(max=high), pessimistic)


def clip_metrics(
    ratio: Tensor, advantages: Tensor, low: float, high: float, dual_clip: float | None
) -> Mapping[str, Tensor]:
    """Mark where the gradient is cut: above, below, and by the dual clip, each [N] of 0/1."""
    above = (advantages > 0) & (ratio > high)
    below = (advantages < 0) & (ratio < low)
    metrics = {
        "policy/clip_frac": above | below,
        "policy/clip_high_frac": above,
        "policy/clip_low_frac": below,
    }
    if dual_clip is not None:
        metrics["policy/clip_dual_frac"] = (advantages < 0) & (ratio > dual_clip)
    return {name: as_float(mask, ratio) for name, mask in metrics.items()}


@dataclass(frozen=True, kw_only=True)
class ClippedRatio(PolicyLoss):
    """Clipped PPO objective, with an optional dual clip. PPO (1707.06347) Eq. 7.

    L = -min(w A, clip(w; 1-low, 1+high) A); for A < 0 also at least -dual_clip A.
    g = -w A, and 0 where (A > 0, w > 1+high), (A < 0, w < 1-low) or (A < 0, w > dual_clip).
    Dual clip (1912.09729); DAPO (2503.14476) Eq. 10 with high > low ("clip-higher"). TRL's `delta`
    is this dual clip.

    Attributes:
        clip_low: distance of the lower bound from 1.
        clip_high: distance of the upper bound from 1.
        dual_clip: upper bound of the ratio for negative advantages, or None.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None

    columns = frozenset({"old_logprobs"})

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high, self.dual_clip)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.PolicyLoss`."""
        low, high = 1.0 - self.clip_low, 1.0 + self.clip_high
        weight = clipped_weight(policy_ratio(inputs), inputs.advantages, low, high, self.dual_clip)
        return -weight * inputs.advantages

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """See :class:`algorithms.parts.TokenPart`."""
        low, high = 1.0 - self.clip_low, 1.0 + self.clip_high
        ratio = policy_ratio(inputs).detach()
        return clip_metrics(ratio, inputs.advantages, low, high, self.dual_clip)


@dataclass(frozen=True, kw_only=True)
class Reinforce(PolicyLoss):
    """Plain policy gradient, with an optional importance weight.

    L = -A log pi; g = -A. With `importance_cap` C: L = -sg(min(w, C)) A log pi.

    REINFORCE, GPG (2504.02546), and CPGD's ablation "PG". In bypass mode (`bypass=true` on the
    algorithm) w = pi / mu, and the cap makes the estimator the truncated importance sampler.

    Attributes:
        importance_cap: None for no importance weight; inf for an untruncated one.
    """

    importance_cap: float | None = None

    @property
    def exact_gradient(self) -> bool:  # type: ignore[override]
        """False with an importance weight, which is detached."""
        return self.importance_cap is None

    def __post_init__(self) -> None:
        if self.importance_cap is not None:
            check_positive("importance_cap", self.importance_cap)

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]
        """Column `old_logprobs` where an importance weight is configured; none elsewhere."""
        return frozenset() if self.importance_cap is None else frozenset({"old_logprobs"})

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.PolicyLoss`."""
        loss = -inputs.advantages * inputs.logprobs
        if self.importance_cap is None:
            return loss
        weight = policy_log_ratio(inputs).detach().exp().clamp(max=self.importance_cap)
        return weight * loss
