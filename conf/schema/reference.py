"""Reference policy: its place in memory.

The algorithm decides if a reference runs, and how the reference follows the policy. Read by the
driver.
"""

from __future__ import annotations

from dataclasses import dataclass

from conf.schema.checks import require
from conf.schema.learner import LearnerConfig


@dataclass(kw_only=True)
class ReferenceConfig:
    """Reference under DeepSpeed ZeRO, on as many ranks as the learner."""

    zero_stage: int | None = None  # 3 divides its weights over the ranks; null: the learner's
    offload_params: bool | None = None  # weights in host memory, ZeRO 3; null: the learner's

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        require(
            self.zero_stage in (None, 0, 1, 2, 3),
            "reference.zero_stage",
            self.zero_stage,
            "must be 0, 1, 2 or 3, or null for the learner's",
        )

    def stage(self, learner: LearnerConfig) -> int:
        """Return the reference's own ZeRO stage, or else the learner's."""
        return learner.zero_stage if self.zero_stage is None else self.zero_stage

    def offloads(self, learner: LearnerConfig) -> bool:
        """Return True where the reference's weights lie in host memory."""
        if self.offload_params is None:
            return learner.offload_params and self.stage(learner) == 3
        return self.offload_params
