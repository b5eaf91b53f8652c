"""RPG, Regularized Policy Gradient (2505.17508): KL-regularised losses, unbiased off-policy.

Four divergences in two styles, with the paper's clips kept apart and named. Runs in the learner's
ranks. The correction of GRPO's KL term is :class:`algorithms.regularizers.ReferenceKL` with
`importance`. Applied per token, as the released code does; exact for whole responses.

Notation: w = pi / pi_old, u = pi_ref / pi_old (u = 1 when the reference is the old policy, which
is the paper's setting), A = R - b, g = d loss / d log pi. The objective is E_pi[R] - beta D with
    D                            loss                            g
    fkl   KL(ref || pi)          -w A - beta u ln w              -(w A + beta u)
    ufkl  KL + mass difference   -w A + beta (w - u ln w - u)    -(w A - beta (w - u))
    rkl   KL(pi || ref)          -w A + beta w ln(w/u)           -w (A - beta (ln(w/u) + 1))
    urkl  KL + mass difference   -w A + beta w (ln(w/u) - 1)     -w (A - beta ln(w/u))
At w = u = 1 the KL gradient of ufkl and urkl is 0 per sample; fkl and rkl have +-beta, which is
zero in expectation only. Shapes: [N].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.inputs import LossInputs
from algorithms.parts import PolicyLoss
from algorithms.policy_losses.clipped import check_clip, clipped_weight
from algorithms.ratios import as_float, clamped_log_ratio, policy_log_ratio
from algorithms.validation import (
    check_at_least,
    check_choice,
    check_finite,
    check_positive,
    present,
)

DIVERGENCES = ("fkl", "ufkl", "rkl", "urkl")
STYLE_CLIPS = {
    "reinforce": ("gated", "gated_paper", "hard", "none"),
    "differentiable": ("dual", "dual_joint", "none"),
}


def kl_loss(divergence: str, log_w: Tensor, log_u: Tensor) -> Tensor:
    """Compute the differentiable KL loss [N]; :func:`kl_slope` is its gradient in log pi."""
    w, u = log_w.exp(), log_u.exp()
    if divergence == "fkl":
        return -u * log_w
    if divergence == "ufkl":
        return w - u * log_w - u
    if divergence == "rkl":
        return w * (log_w - log_u)
    return w * (log_w - log_u - 1.0) + u


def kl_slope(divergence: str, w: Tensor, log_u: Tensor) -> Tensor:
    """Compute the derivative d kl_loss / d log pi [N] at ratio w."""
    u = log_u.exp()
    if divergence == "fkl":
        return -u
    if divergence == "ufkl":
        return w - u
    log_v = torch.log(w) - log_u
    return w * (log_v + 1.0 if divergence == "rkl" else log_v)


@dataclass(frozen=True, kw_only=True)
class RegularizedPolicyGradient(PolicyLoss):
    """RPG losses; tables 1 and 2 of the paper for `clip=none`.

    style reinforce, loss = -sg(Weight) log pi:
        gated        RPG-style clip, the headline method, as the released `*_clip_ppo` function:
                     g = -(w A + C~) where A > 0 ? w < 1+high : 1-low <= w < dual_clip, else 0.
                     C~ is the KL part of the weight at w clipped to [1-low, 1+high].
        gated_paper  Algorithm 2 as printed: C at the unclipped w, branch on the sign of A + C / w,
                     cut where w <= 1-low.
        hard         truncated weights, Remark F.2: g = -(w~ A + C~), never 0.
        none         g = -Weight.
    style differentiable, gradient through w:
        dual         what the released "RPG-xKL" runs execute: dual-clip PPO on A plus a separate
                     KL loss, clamped in value to +-kl_limit and not clipped otherwise.
        dual_joint   Algorithm 1 as printed: dual clip on A^ = A - beta ln(w/u) (urkl) or
                     A - beta (ln(w/u) + 1) (rkl) with the gradient through A^ too; fkl and ufkl
                     use A^ = A (appendix G.2).
        none         the table above.

    Attributes:
        divergence: fkl, ufkl, rkl or urkl.
        style: reinforce or differentiable.
        clip: gated, gated_paper, hard, none (reinforce); dual, dual_joint, none (differentiable).
        beta: KL coefficient.
        clip_low, clip_high: e1, e2.
        dual_clip: c.
        kl_limit: bound of the separate KL loss in `dual`; no gradient outside.
        reference: old (refreshed with every rollout) or ref (the reference role, which follows
            training by the algorithm's rule, see :mod:`algorithms.references`).
    """

    divergence: str = "ufkl"
    style: str = "reinforce"
    clip: str = "gated"
    beta: float = 1e-4
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 10.0
    kl_limit: float = 10.0
    reference: str = "old"

    def __post_init__(self) -> None:
        check_choice("divergence", self.divergence, DIVERGENCES)
        check_choice("style", self.style, STYLE_CLIPS)
        if self.clip not in STYLE_CLIPS[self.style]:
            raise ValueError(
                f"clip={self.clip!r} does not exist for style={self.style!r}; "
                f"choose one of {', '.join(STYLE_CLIPS[self.style])}, or the other style"
            )
        check_choice("reference", self.reference, ("old", "ref"))
        check_at_least("beta", self.beta, 0.0)
        check_finite("beta", self.beta)
        check_positive("kl_limit", self.kl_limit)
        check_clip(self.clip_low, self.clip_high, self.dual_clip)

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]
        """Column `old_logprobs`, and `ref_logprobs` where the reference is its own policy."""
        names = {"old_logprobs"} | ({"ref_logprobs"} if self.reference == "ref" else set())
        return frozenset(names)

    @property
    def on_policy_reinforce(self) -> bool:  # type: ignore[override]
        """False where a KL gradient is left at w = 1.

        FKL and RKL keep +-beta at w = 1; another reference than the old policy keeps its distance.
        """
        exact = self.divergence in ("ufkl", "urkl") and self.clip != "dual_joint"
        return self.beta == 0.0 or (exact and self.reference == "old")

    @property
    def exact_gradient(self) -> bool:  # type: ignore[override]
        """False for the REINFORCE style, whose weights are detached."""
        return self.style == "differentiable"

    def _log_u(self, inputs: LossInputs) -> Tensor:
        """Compute the log-ratio ln u [N], detached."""
        if self.reference == "old":
            return torch.zeros_like(inputs.logprobs.detach())
        reference = present("ref_logprobs", inputs.ref_logprobs)
        return clamped_log_ratio(reference, inputs.old_logprobs).detach()

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.PolicyLoss`."""
        if self.style == "differentiable":
            return self._differentiable(inputs)
        weight, keep = self._reinforce_weight(inputs)
        loss = -weight * inputs.logprobs
        return torch.where(keep, loss, loss.detach())

    def _reinforce_weight(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Compute (Weight, tokens that pass a gradient), both [N] and detached."""
        w = policy_log_ratio(inputs).detach().exp()
        log_u, advantages = self._log_u(inputs), inputs.advantages
        low, high = 1.0 - self.clip_low, 1.0 + self.clip_high
        truncated = w.clamp(low, high)
        if self.clip in ("none", "gated_paper"):
            kl = -self.beta * kl_slope(self.divergence, w, log_u)
        else:
            kl = -self.beta * kl_slope(self.divergence, truncated, log_u)
        if self.clip == "hard":
            return truncated * advantages + kl, torch.ones_like(inputs.loss_mask)
        keep = torch.ones_like(inputs.loss_mask)
        if self.clip == "gated":
            below = (w >= low) & (w < self.dual_clip)
            keep = torch.where(advantages > 0, w < high, below)
        elif self.clip == "gated_paper":
            below = (w > low) & (w < self.dual_clip)
            keep = torch.where(advantages + kl / w > 0, w < high, below)
        return w * advantages + kl, keep

    def _differentiable(self, inputs: LossInputs) -> Tensor:
        """Compute the losses with the gradient through w [N]."""
        log_w, log_u = policy_log_ratio(inputs), self._log_u(inputs)
        w, advantages = log_w.exp(), inputs.advantages
        low, high = 1.0 - self.clip_low, 1.0 + self.clip_high
        if self.clip == "none":
            return -w * advantages + self.beta * kl_loss(self.divergence, log_w, log_u)
        if self.clip == "dual":
            penalty = kl_loss(self.divergence, log_w, log_u).clamp(-self.kl_limit, self.kl_limit)
            weight = clipped_weight(w, advantages, low, high, self.dual_clip)
            return -weight * advantages + self.beta * penalty
        if self.divergence in ("rkl", "urkl"):
            offset = 1.0 if self.divergence == "rkl" else 0.0
            advantages = advantages - self.beta * (log_w - log_u + offset)
        # The factor carries the gradient of w, the advantages carry that of ln w.
        return -clipped_weight(w, advantages, low, high, self.dual_clip) * advantages

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """See :class:`algorithms.parts.TokenPart`."""
        log_w, log_u = policy_log_ratio(inputs).detach(), self._log_u(inputs)
        w = log_w.exp()
        if self.style == "reinforce":
            _, keep = self._reinforce_weight(inputs)
            clipped = ~keep
        else:
            above = (inputs.advantages > 0) & (w > 1.0 + self.clip_high)
            below = (inputs.advantages < 0) & ((w < 1.0 - self.clip_low) | (w > self.dual_clip))
            clipped = (above | below) & (self.clip != "none")
        return {
            "policy/clip_frac": as_float(clipped, w),
            f"rpg/{self.divergence}": kl_loss(self.divergence, log_w, log_u),
        }
