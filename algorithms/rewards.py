"""Reward shaping: functions from scored rewards to the rewards that credit reads.

Length-dependent and range-dependent changes of a scalar reward per sequence. Runs in the driver.
Not a scorer of text. Shapes: S sequences.
"""

from dataclasses import dataclass

from torch import Tensor

from algorithms.inputs import RewardInputs
from algorithms.parts import RewardShaping
from algorithms.validation import check_at_least, check_ordered, check_positive


@dataclass(frozen=True, kw_only=True)
class OverlongPenalty(RewardShaping):
    """Linear penalty on responses near the length limit. DAPO (2503.14476) Eq. 13.

    R += min(-(len - (max_length - buffer)) / buffer * factor, 0).

    Zero up to `max_length - buffer`, then linear down to `-factor` at `max_length` and beyond. A
    budget that is no longer than the buffer has no room for a ramp: nothing is penalised.

    Attributes:
        max_length: generation budget in tokens.
        buffer: length of the ramp in tokens.
        factor: penalty at the end of the ramp.
    """

    max_length: int = 20480
    buffer: int = 4096
    factor: float = 1.0

    def __post_init__(self) -> None:
        check_positive("max_length", self.max_length)
        check_positive("buffer", self.buffer)
        check_at_least("factor", self.factor, 0.0)

    @property
    def ramps(self) -> bool:
        """False where the budget has no room for the buffer."""
        return self.buffer < self.max_length

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """See :class:`algorithms.parts.RewardShaping`."""
        if not self.ramps:
            return inputs.rewards
        excess = inputs.response_lengths - (self.max_length - self.buffer)
        ramp = excess.clamp(0, self.buffer).to(inputs.rewards.dtype) / self.buffer
        return inputs.rewards - self.factor * ramp


@dataclass(frozen=True, kw_only=True)
class ClipReward(RewardShaping):
    """Bounds on the reward: R = clip(R; low, high)."""

    low: float = -10.0
    high: float = 10.0

    def __post_init__(self) -> None:
        check_ordered("low", self.low, "high", self.high)

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """See :class:`algorithms.parts.RewardShaping`."""
        return inputs.rewards.clamp(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class TruncationReward(RewardShaping):
    """Fixed reward of truncated responses: R = value, whatever the scorer returned."""

    value: float = 0.0

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """See :class:`algorithms.parts.RewardShaping`."""
        return inputs.rewards.masked_fill(inputs.truncated, self.value)
