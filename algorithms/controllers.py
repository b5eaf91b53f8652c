"""Controllers: coefficients of an algorithm that follow a measured metric from step to step.

Pure updates (value, observation) -> value; each names the coefficient that it steers, by the dotted
path in the algorithm, and the metric that it reads. Runs in the driver, once after every step.
Keeps no state: the driver keeps the values, ships them with every step and checkpoints them.
"""

from abc import abstractmethod
from dataclasses import dataclass

from algorithms.parts import Part
from algorithms.validation import check_at_least, check_finite, check_positive


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

    c <- c (1 + clip(m / target - 1; -limit, limit) n / horizon). Raises the coefficient where the
    metric lies above its target, as a penalty needs.

    Attributes:
        coefficient: the number that is steered.
        metric: m, the number that is held. The paper's KL is a response's sum; `policy/kl_ref_k3`
            is a token's mean.
        target: value to hold.
        horizon: samples over which the error acts.
        limit: bound of the relative error.
    """

    coefficient: str
    metric: str
    target: float
    horizon: float = 10_000.0
    limit: float = 0.2

    def __post_init__(self) -> None:
        check_positive("target", self.target)
        check_positive("horizon", self.horizon)
        check_positive("limit", self.limit)

    def check_start(self, value: float) -> None:
        """Raise ValueError unless `value` is above 0: a factor leaves 0 at 0."""
        check_finite(self.coefficient, value)
        if not value > 0:
            raise ValueError(
                f"{self.coefficient}={value} is steered by a factor, which needs a start above 0; "
                f"set algorithm.{self.coefficient}"
            )

    def update(self, value: float, observed: float, num_samples: int) -> float:
        """See :class:`Controller`."""
        error = min(max(observed / self.target - 1.0, -self.limit), self.limit)
        return value * (1.0 + error * num_samples / self.horizon)


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
