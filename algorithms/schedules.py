"""Rules that follow training: adaptive coefficients and when to refresh the reference.

What it is: pure transitions (state, observation) -> state. What it is not: a holder of state; the
caller keeps it and checkpoints it.
"""

from dataclasses import dataclass

from algorithms.validation import check_fraction, check_positive


@dataclass(frozen=True, kw_only=True)
class AdaptiveCoefficient:
    """c <- c (1 + clip(kl / target - 1; -limit, limit) n / horizon). Ziegler (1909.08593) 2.2.

    Attributes:
        target: KL to hold.
        horizon: samples over which the error acts.
        limit: bound of the relative error.
    """

    target: float = 6.0
    horizon: float = 10_000.0
    limit: float = 0.2

    def __post_init__(self) -> None:
        check_positive("target", self.target)
        check_positive("horizon", self.horizon)
        check_positive("limit", self.limit)

    def update(self, coefficient: float, observed_kl: float, num_samples: int) -> float:
        """The coefficient after `num_samples` samples with mean `observed_kl`."""
        error = min(max(observed_kl / self.target - 1.0, -self.limit), self.limit)
        return coefficient * (1.0 + error * num_samples / self.horizon)


@dataclass(frozen=True, kw_only=True)
class RefreshState:
    """Steps since the last refresh, and the moving average of the token KL."""

    steps: int = 0
    average_kl: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ReferenceRefresh:
    """When the reference becomes the current policy. RPG (2505.17508), section 3.

    Every `every_steps` optimizer steps, or when the moving average of the token KL exceeds
    `kl_threshold`, whichever comes first. The released code refreshes with every rollout, which is
    `reference=old` of the loss and needs no schedule. The paper gives neither K nor kappa.

    Attributes:
        every_steps: K, or None.
        kl_threshold: kappa, or None.
        decay: weight of the past in the moving average.
    """

    every_steps: int | None = None
    kl_threshold: float | None = None
    decay: float = 0.9

    def __post_init__(self) -> None:
        if self.every_steps is not None:
            check_positive("every_steps", self.every_steps)
        if self.kl_threshold is not None:
            check_positive("kl_threshold", self.kl_threshold)
        check_fraction("decay", self.decay)

    def update(self, state: RefreshState, token_kl: float) -> tuple[RefreshState, bool]:
        """State after a step with mean `token_kl`, and whether to refresh now."""
        average = self.decay * state.average_kl + (1.0 - self.decay) * token_kl
        steps = state.steps + 1
        due = self.every_steps is not None and steps >= self.every_steps
        far = self.kl_threshold is not None and average > self.kl_threshold
        if due or far:
            return RefreshState(), True
        return RefreshState(steps=steps, average_kl=average), False
