"""Regularizers: terms under the policy loss's aggregation, outside gates and corrections.

Policy drift, KL to the reference, entropy bonus. Runs in the learner's ranks. A term with its own
denominator is in :mod:`algorithms.auxiliary`. Shapes: [N].
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from algorithms.inputs import LossInputs
from algorithms.kl import K3_LIMIT, check_estimator, estimate
from algorithms.parts import Regularizer
from algorithms.ratios import as_float, policy_log_ratio, policy_ratio
from algorithms.validation import check_at_least, check_finite, check_positive, present


@dataclass(frozen=True, kw_only=True)
class PolicyDrift(Regularizer):
    """Policy drift: a capped penalty on leaving the old policy. CPGD (2505.12504) Eq. 2.

    L = alpha sg(min(w - 1, cap)) log pi; g = alpha min(w - 1, cap).

    The gradient of alpha k3(w), an estimate of KL(pi_old || pi), truncated above. It is the
    GRADIENT that is capped, so the value means nothing; read `drift/kl_k3` instead. No lower cap:
    w - 1 >= -1. Never gated by a clip.

    Attributes:
        coefficient: alpha; 0.01 in the released scripts (the paper prints none).
        cap: upper bound of w - 1; 2 in the released scripts; `inf` for the plain k3 gradient.
    """

    coefficient: float = 0.01
    cap: float = 2.0

    columns = frozenset({"old_logprobs"})

    def __post_init__(self) -> None:
        check_at_least("coefficient", self.coefficient, 0.0)
        check_finite("coefficient", self.coefficient)
        check_positive("cap", self.cap)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.Regularizer`."""
        slope = (policy_ratio(inputs).detach() - 1.0).clamp(max=self.cap)
        return self.coefficient * slope * inputs.logprobs

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """See :class:`algorithms.parts.TokenPart`."""
        ratio = policy_ratio(inputs).detach()
        return {
            "drift/kl_k3": ratio - 1.0 - ratio.log(),
            "drift/cap_frac": as_float(ratio - 1.0 > self.cap, ratio),
        }


@dataclass(frozen=True, kw_only=True)
class SquaredLogRatio(Regularizer):
    """Squared log-ratio to the old policy: L = c (ln w)^2, g = 2 c ln w. Kimi K2.5 (2602.02276).

    Twice the k2 estimate. In bypass mode w = pi / mu, as in prime-rl's present default.

    Attributes:
        coefficient: c; 1e-3 in prime-rl.
    """

    coefficient: float = 1e-3

    columns = frozenset({"old_logprobs"})

    def __post_init__(self) -> None:
        check_at_least("coefficient", self.coefficient, 0.0)
        check_finite("coefficient", self.coefficient)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.Regularizer`."""
        return self.coefficient * policy_log_ratio(inputs).square()

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """See :class:`algorithms.parts.TokenPart`."""
        return {"drift/squared_log_ratio": policy_log_ratio(inputs).detach().square()}


@dataclass(frozen=True, kw_only=True)
class ReferenceKL(Regularizer):
    """KL penalty on the distance to the reference: L = beta k(pi_ref / pi).

    k3 as GRPO uses it (2402.03300 Eq. 4): g = beta (1 - pi_ref / pi). On-policy its expectation
    is the gradient of KL(pi_ref || pi), the FORWARD divergence; off-policy it is neither.

    `importance` weighs it by w = pi / pi_old (RPG, 2505.17508, section on GRPO's KL):
        "differentiable": beta w k3, g = beta w ln(pi / pi_ref); expectation exactly the gradient
            of KL(pi || pi_ref). TRL's `use_bias_correction_kl`.
        "detached": beta sg(w) k3, g = beta w (1 - pi_ref / pi); expectation exactly the gradient
            of KL(pi_ref || pi).
    k1 as a loss has zero expected gradient on-policy; k2 has that of KL(pi || pi_ref).

    `limit` bounds k3, as verl's `low_var_kl` is clamped to 10: beyond, L = beta limit and g = 0
    (with "differentiable", g = beta w limit). k3 grows with pi_ref / pi: without a bound one token
    15 nats below the reference weighs as much as a million others.

    Attributes:
        coefficient: beta; 0.04 in DeepSeekMath, 0.001 in common recipes.
        estimator: k1, k2 or k3.
        importance: none, differentiable or detached.
        limit: upper bound of a token's k3; `inf` for none. k1 and k2 have none but the clamp of
            every log-ratio to +-20.
    """

    coefficient: float = 0.04
    estimator: str = "k3"
    importance: str = "none"
    limit: float = K3_LIMIT

    def __post_init__(self) -> None:
        check_at_least("coefficient", self.coefficient, 0.0)
        check_finite("coefficient", self.coefficient)
        check_estimator("estimator", self.estimator)
        check_positive("limit", self.limit)
        if self.importance not in ("none", "differentiable", "detached"):
            raise ValueError(
                f"importance={self.importance!r} is unknown; "
                "choose none, differentiable or detached"
            )

    @property
    def columns(self) -> frozenset[str]:  # type: ignore[override]
        """Column `ref_logprobs`, and `old_logprobs` where the penalty is weighted."""
        names = {"ref_logprobs"} | ({"old_logprobs"} if self.importance != "none" else set())
        return frozenset(names)

    def _estimate(self, inputs: LossInputs) -> Tensor:
        reference = present("ref_logprobs", inputs.ref_logprobs)
        return estimate(self.estimator, inputs.logprobs, reference, k3_limit=self.limit)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.Regularizer`."""
        penalty = self.coefficient * self._estimate(inputs)
        if self.importance == "none":
            return penalty
        ratio = policy_ratio(inputs)
        return (ratio if self.importance == "differentiable" else ratio.detach()) * penalty

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """See :class:`algorithms.parts.TokenPart`."""
        value = self._estimate(inputs).detach()
        metrics = {f"policy/kl_ref_{self.estimator}": value}
        if self.estimator == "k3":
            metrics["policy/kl_ref_limit_frac"] = as_float(value >= self.limit, value)
        return metrics


@dataclass(frozen=True, kw_only=True)
class EntropyBonus(Regularizer):
    """Bonus on the full-vocabulary entropy of the current policy: L = -coefficient H(pi).

    Attributes:
        coefficient: positive to keep the policy random, negative to sharpen it.
    """

    coefficient: float = 0.001

    columns = frozenset({"entropy"})
    entropy_gradient = True

    def __post_init__(self) -> None:
        check_finite("coefficient", self.coefficient)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.Regularizer`."""
        return -self.coefficient * present("entropy", inputs.entropy)
