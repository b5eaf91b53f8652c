"""Controllers: coefficients of an algorithm that follow a measured metric from step to step.

Pure updates (value, observation) -> value; each names the coefficient that it steers, by the dotted
path in the algorithm, and the metric that it reads. Runs in the driver, once after every step.
Keeps no state: the driver keeps the values, ships them with every step and checkpoints them.
"""

from abc import abstractmethod
from dataclasses import dataclass

from algorithms.parts import Part
from algorithms.validation import check_at_least, check_finite, check_ordered, check_positive


class Controller(Part):
    """Rule that steers one number of the algorithm, applied once after every step."""

    coefficient: str  # dotted path in the algorithm, such as regularizers.kl.coefficient
    metric: str  # of the algorithm's own metrics, such as policy/kl_ref_k3

    def check_start(self, value: float) -> None:
        """Raise ValueError where the steered number can't start from the configured `value`."""
        check_finite(self.coefficient, value)

    @abstractmethod
    def update(self, value: float, observed: float, num_samples: int) -> float:
        """Return the next coefficient, after `num_samples` responses that measured `observed`."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveCoefficient(Controller):
    """Coefficient that keeps a metric at a target. Ziegler (1909.08593) 2.2.

    c <- clip(c (1 + clip(m / target - 1; -limit, limit) min(n / horizon, 1)); minimum, maximum).
    Raises the coefficient where the metric lies above its target, as a penalty needs.

    Deviations: a step of more samples than the horizon counts as one of the horizon, or the factor
    of a large step would be negative; and the coefficient has bounds.

    Attributes:
        coefficient: the number that is steered.
        metric: m, the number that is held. The paper's KL is a response's sum; `policy/kl_ref_k3`
            is a token's mean.
        target: value to hold.
        horizon: samples over which the error acts.
        limit: bound of the relative error, below 1: the factor stays positive.
        minimum, maximum: bounds of the coefficient.
    """

    coefficient: str
    metric: str
    target: float
    horizon: float = 10_000.0
    limit: float = 0.2
    minimum: float = 1e-6
    maximum: float = 10.0

    def __post_init__(self) -> None:
        check_positive("target", self.target)
        check_positive("horizon", self.horizon)
        check_positive("limit", self.limit)
        if self.limit >= 1:
            raise ValueError(f"limit={self.limit} lets the factor reach 0; set it below 1")
        check_positive("minimum", self.minimum)
        check_ordered("minimum", self.minimum, "maximum", self.maximum)

    def check_start(self, value: float) -> None:
        """Raise ValueError unless `value` lies between the bounds; a factor leaves 0 at 0."""
        check_finite(self.coefficient, value)
        if not self.minimum <= value <= self.maximum:
            raise ValueError(
                f"{self.coefficient}={value} is steered by a factor, which needs a start from "
                f"minimum={self.minimum} to maximum={self.maximum}; set algorithm."
                f"{self.coefficient}, or the controller's bounds"
            )

    def update(self, value: float, observed: float, num_samples: int) -> float:
        """See :class:`Controller`."""
        error = min(max(observed / self.target - 1.0, -self.limit), self.limit)
        moved = value * (1.0 + error * min(num_samples / self.horizon, 1.0))
        return min(max(moved, self.minimum), self.maximum)


@dataclass(frozen=True, kw_only=True)
class EntropyTarget(Controller):
    """Coefficient of an entropy bonus that keeps the entropy at a target. Skywork-OR1 (2505.22312).

    c <- clip(c + step; 0, maximum) where m < target, clip(c - step; 0, maximum) elsewhere.

    The paper's adaptive entropy control. Deviation: the paper also switches the bonus off while the
    entropy is above its target; here it falls to 0 by steps.

    Attributes:
        coefficient: of an entropy bonus.
        metric: the entropy.
        target: entropy to keep, in nats per token.
        step: change of the coefficient after every step.
        maximum: upper bound of the coefficient.
    """

    coefficient: str
    metric: str
    target: float
    step: float
    maximum: float

    def __post_init__(self) -> None:
        check_positive("target", self.target)
        check_positive("step", self.step)
        check_positive("maximum", self.maximum)

    def check_start(self, value: float) -> None:
        """Raise ValueError where `value` is negative, or above the bonus's upper bound."""
        check_at_least(self.coefficient, value, 0.0)
        if value > self.maximum:
            raise ValueError(
                f"{self.coefficient}={value} starts above maximum={self.maximum}; "
                "lower it or raise maximum"
            )

    def update(self, value: float, observed: float, num_samples: int) -> float:
        """See :class:`Controller`."""
        del num_samples
        moved = value + self.step if observed < self.target else value - self.step
        return min(max(moved, 0.0), self.maximum)
