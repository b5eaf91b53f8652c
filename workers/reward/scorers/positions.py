"""Give dense credit for an answer that is right in some places, so that random weights can learn.

Runs in a scoring process. Characters are compared by position; nothing is aligned.
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.reward.base import RewardSample
from workers.reward.scorers.exact import check_stop, cut_at, truth_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Positions:
    """exact_weight * [response = truth] + (1 - exact_weight) * fraction of right positions.

    Position i is right if the response has the truth's character there. "12845" for "12345" with
    exact_weight 0.5 gives 0.5 * 0 + 0.5 * 4/5 = 0.4. Characters beyond the truth are wrong for the
    first term and not counted in the second.

    Attributes:
        exact_weight: in [0, 1]; without it a model may settle for most of the answer.
        stop_at: only the response before this text counts, None for all of it.
    """

    exact_weight: float = 0.5
    stop_at: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.exact_weight <= 1.0:
            raise ValueError(f"exact_weight must lie in [0, 1], got {self.exact_weight}")
        check_stop(self.stop_at)

    def __call__(self, sample: RewardSample) -> dict[str, float]:
        """Score one response; parts "positions" (fraction) and "exact" (0 or 1)."""
        response, truth = cut_at(sample.response, self.stop_at), truth_of(sample)
        right = sum(a == b for a, b in zip(response, truth, strict=False)) / len(truth)
        exact = float(response == truth)
        reward = self.exact_weight * exact + (1.0 - self.exact_weight) * right
        return {"reward": reward, "positions": right, "exact": exact}
