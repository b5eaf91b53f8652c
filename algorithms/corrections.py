"""Sampler/trainer mismatch: factors on the policy loss from old versus rollout log-probs.

Truncated importance sampling, masks and sequence rejection between the trainer's old policy and the
sampler mu, which differ by kernels, precision and weight versions. Runs in the learner's ranks. Not
a change of the PPO ratio, which stays pi / pi_old; with an unbounded factor f, f * w is pi / mu.

Notation: d = log pi_old - log mu, rho = exp(d) with d clamped to +-20, all detached.
DROPPED TOKENS (factor 0) STAY IN THE DENOMINATOR, as in TRL, OpenRLHF and slime: the denominator is
a property of the batch, not of the numerics. verl's legacy path removes them instead.
Shapes: [N].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.composition import check_kind, union
from algorithms.inputs import LossInputs
from algorithms.parts import Correction
from algorithms.ratios import LOG_RATIO_LIMIT, as_float, clamped_log_ratio
from algorithms.segments import masked_sequence_max, masked_sequence_mean, masked_sequence_sum
from algorithms.validation import (
    check_at_least,
    check_choice,
    check_ordered,
    check_positive,
    present,
)

LEVELS = ("token", "sequence", "geometric")


def mismatch(inputs: LossInputs) -> Tensor:
    """Compute the mismatch d = log pi_old - log mu [N], clamped to +-20, detached."""
    rollout = present("rollout_logprobs", inputs.rollout_logprobs)
    return clamped_log_ratio(inputs.old_logprobs, rollout).detach()


def _reduced(values: Tensor, inputs: LossInputs, level: str) -> Tensor:
    """Reduce values [N] by response (sum or mean, spread to its tokens), or keep them per token."""
    if level == "token":
        return values
    reduce = masked_sequence_sum if level == "sequence" else masked_sequence_mean
    total = reduce(values, inputs.loss_mask, inputs.sequence_ids)
    return total.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


class MismatchCorrection(Correction):
    """Base of the corrections here, with the metrics of the mismatch that all of them report."""

    columns = frozenset({"old_logprobs", "rollout_logprobs"})

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """See :class:`algorithms.parts.TokenPart`."""
        log_ratio, factor = mismatch(inputs), self(inputs).detach()
        return {
            "mismatch/factor": factor,
            "mismatch/dropped_frac": as_float(factor == 0.0, factor),
            "mismatch/ratio_max": log_ratio.exp(),
            # KL(mu || pi_old) from samples of mu.
            "mismatch/kl_k1": -log_ratio,
            "mismatch/kl_k3": log_ratio.exp() - 1.0 - log_ratio,
        }


@dataclass(frozen=True, kw_only=True)
class TruncatedRatio(MismatchCorrection):
    """Truncated importance sampling (TIS): f = clip(rho; low, high).

    Attributes:
        level: token; sequence, exp(sum of d over the response); geometric, exp(mean of d).
        low: 0 for none; OpenRLHF 0.5.
        high: 2 in verl, 2 to 5 elsewhere; `inf` for the plain importance ratio.
    """

    level: str = "token"
    low: float = 0.0
    high: float = 2.0

    def __post_init__(self) -> None:
        check_choice("level", self.level, LEVELS)
        check_at_least("low", self.low, 0.0)
        check_ordered("low", self.low, "high", self.high)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.Correction`."""
        return _reduced(mismatch(inputs), inputs, self.level).exp().clamp(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class MaskedRatio(MismatchCorrection):
    """Importance ratio that is kept inside an interval and dropped outside.

    f = ratio where low <= statistic <= high, else 0.

    level      statistic          ratio            known as
    token      rho                rho              MIS token mask, IcePop (2510.18855) [0.5, 5]
    sequence   exp(sum of d)      exp(sum of d)    TRL's default, [0, 3]
    geometric  exp(mean of d)     rho, untruncated seq-mask-TIS, [0.999, 1.002]

    Attributes:
        level: token, sequence or geometric.
        low, high: closed interval of the statistic.
    """

    level: str = "token"
    low: float = 0.5
    high: float = 5.0

    def __post_init__(self) -> None:
        check_choice("level", self.level, LEVELS)
        check_at_least("low", self.low, 0.0)
        check_ordered("low", self.low, "high", self.high)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.Correction`."""
        log_ratio = mismatch(inputs)
        statistic = _reduced(log_ratio, inputs, self.level).exp()
        ratio = statistic if self.level == "sequence" else log_ratio.exp()
        return torch.where((statistic >= self.low) & (statistic <= self.high), ratio, 0.0)


@dataclass(frozen=True, kw_only=True)
class SequenceVeto(MismatchCorrection):
    """Mask of whole responses by their worst token.

    f = 0 for a response with any token outside [low, high], else 1. slime's veto is (1e-4, inf);
    SkyRL's outlier mask bounds both sides.

    Attributes:
        low, high: closed interval that every trainable token's rho must lie in.
    """

    low: float = 1e-4
    high: float = math.inf

    def __post_init__(self) -> None:
        check_at_least("low", self.low, 0.0)
        check_ordered("low", self.low, "high", self.high)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.Correction`."""
        ratio = mismatch(inputs).exp()
        outside = as_float((ratio < self.low) | (ratio > self.high), ratio)
        worst = masked_sequence_max(outside, inputs.loss_mask, inputs.sequence_ids, 0.0)
        return 1.0 - worst


@dataclass(frozen=True, kw_only=True)
class OffPolicySequenceMask(MismatchCorrection):
    """Mask of bad responses that the current policy has left: OPSM of DeepSeek-V3.2 (2512.02556).

    f = 0 where A < 0 and mean over the response of (log mu - log pi) > delta, else 1. A bad
    response that the CURRENT policy has left is not pushed further. The one correction here that
    reads `logprobs`.

    Attributes:
        delta: bound of the mean log-ratio.
    """

    delta: float = 0.1

    def __post_init__(self) -> None:
        check_positive("delta", self.delta)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.Correction`."""
        rollout = present("rollout_logprobs", inputs.rollout_logprobs)
        departed = clamped_log_ratio(rollout, inputs.logprobs).detach()
        mean = masked_sequence_mean(departed, inputs.loss_mask, inputs.sequence_ids)
        return as_float(~((inputs.advantages < 0) & (mean > self.delta)), mean)


@dataclass(frozen=True, kw_only=True)
class DivergenceRejection(MismatchCorrection):
    """Mask by an estimate of the divergence between old policy and sampler.

    f = 1 where low <= statistic of a divergence estimate <= high, else 0.

    The estimate per token is k1 = -d, k2 = d^2 / 2 or k3 = exp(d) - 1 - d, in logarithms: k1 bounds
    are log-ratios of mu / pi_old. (verl writes k1 bounds as ratios, and bounds mu / pi_old where
    one expects pi_old / mu.) k2 and k3 are never negative: only `high` matters.

    Attributes:
        estimator: k1, k2 or k3.
        level: token, sequence_sum, sequence_mean or sequence_max.
        low, high: closed interval.
    """

    estimator: str = "k3"
    level: str = "sequence_mean"
    low: float = -math.inf
    high: float = 0.1

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, ("k1", "k2", "k3"))
        check_choice(
            "level", self.level, ("token", "sequence_sum", "sequence_mean", "sequence_max")
        )
        check_ordered("low", self.low, "high", self.high)

    def _estimate(self, log_ratio: Tensor) -> Tensor:
        if self.estimator == "k1":
            return -log_ratio
        if self.estimator == "k2":
            return 0.5 * log_ratio.square()
        return log_ratio.exp() - 1.0 - log_ratio

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.Correction`."""
        value, mask, ids = self._estimate(mismatch(inputs)), inputs.loss_mask, inputs.sequence_ids
        if self.level == "sequence_sum":
            value = masked_sequence_sum(value, mask, ids)
        elif self.level == "sequence_mean":
            value = masked_sequence_mean(value, mask, ids)
        elif self.level == "sequence_max":
            value = masked_sequence_max(value, mask, ids, -math.inf)
        return as_float((value >= self.low) & (value <= self.high), value)


@dataclass(frozen=True, kw_only=True)
class ProbabilityMask(MismatchCorrection):
    """Importance ratio masked by the difference of probabilities, on both sides: IPO.

    Until early 2026 the default of prime-rl, whose default masks one side by the sign of the
    advantage since: :class:`algorithms.gates.ProbabilityClip`.

    f = rho where |pi_old - mu| <= eps, else 0. A ratio treats a token of probability 1e-4 like one
    of 0.5; the difference does not.

    Attributes:
        eps: largest accepted difference of probabilities.
    """

    eps: float = 0.3

    def __post_init__(self) -> None:
        check_positive("eps", self.eps)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.Correction`."""
        rollout = present("rollout_logprobs", inputs.rollout_logprobs)
        moved = (inputs.old_logprobs.exp() - rollout.exp()).abs().detach()
        return torch.where(moved <= self.eps, mismatch(inputs).exp(), 0.0)


@dataclass(frozen=True, kw_only=True)
class Product(MismatchCorrection):
    """Product of the factors of several corrections, such as a truncated ratio and a veto.

    Two parts that both carry rho multiply it twice; combine one ratio with masks of 0 and 1.

    Attributes:
        parts: corrections by key.
    """

    parts: Mapping[str, Correction]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts={} is empty; give a correction, or choose correction none")
        for name, part in self.parts.items():
            check_kind(f"parts.{name}", part, Correction)
        object.__setattr__(self, "parts", dict(self.parts))

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]
        """Columns of all the parts."""
        return union(self.parts.values())

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.Correction`."""
        factor = torch.ones_like(inputs.old_logprobs)
        for part in self.parts.values():
            factor = factor * part(inputs)
        return factor
