"""Schedule: the distance by which generation may run ahead of learning.

Read by the driver. Runs no step.
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from conf.schema.checks import choose, require


@dataclass(kw_only=True)
class ScheduleConfig:
    """Distance by which generation may run ahead of learning, and the order of training."""

    name: str = MISSING
    max_staleness: int = 0  # policy versions between sampling and training; 0: synchronous
    order: str = "begun"  # groups train as they were begun, or as they finish (updates shuffled)
    stale: str = "drop"  # a group beyond max_staleness: drop it, or train it (with a correction)
    kv_cache: str = "recompute"  # of responses that weights change under: recompute it, or stale
    oversample: float = 1.0  # groups begun for a step over those that it trains
    leftover: str = "again"  # the slowest of these: keep them in flight, begin again, or drop
    max_refill_rounds: int = 10  # batches sampled, at most, to fill one whose groups were filtered

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        require(
            self.max_staleness >= 0,
            "schedule.max_staleness",
            self.max_staleness,
            "must not be negative",
        )
        choose("schedule.order", self.order, ("begun", "finished"))
        choose("schedule.stale", self.stale, ("drop", "train"))
        choose("schedule.kv_cache", self.kv_cache, ("recompute", "stale"))
        self._check_oversample()
        require(
            self.max_refill_rounds >= 1,
            "schedule.max_refill_rounds",
            self.max_refill_rounds,
            "must be at least 1",
        )

    def _check_oversample(self) -> None:
        choose("schedule.leftover", self.leftover, ("keep", "again", "drop"))
        require(
            self.oversample >= 1,
            "schedule.oversample",
            self.oversample,
            "must be at least 1; 1 begins what a step trains and no more",
        )
        if self.oversample == 1:
            return
        require(
            self.order == "finished",
            "schedule.oversample",
            self.oversample,
            f"trains the groups that finish first, which schedule.order={self.order} does not; set "
            "schedule.order=finished",
        )
        require(
            self.leftover != "keep" or self.max_staleness >= 1,
            "schedule.leftover",
            self.leftover,
            "what is kept in flight trains under later weights, which schedule.max_staleness=0 "
            "forbids; raise it, or choose again or drop",
        )
