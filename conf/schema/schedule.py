"""How far generation may run ahead of learning."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from conf.schema.checks import choose, require


@dataclass(kw_only=True)
class ScheduleConfig:
    """How far generation may run ahead of learning."""

    name: str = MISSING
    max_staleness: int = 0  # policy versions between sampling and training; 0: synchronous
    order: str = "begun"  # groups train in the order in which they were begun, or finished
    stale: str = "drop"  # a group beyond max_staleness: drop it, or train it (with a correction)
    max_refill_rounds: int = 10  # batches sampled, at most, to fill one whose groups were filtered

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        require(
            self.max_staleness >= 0,
            "schedule.max_staleness",
            self.max_staleness,
            "must not be negative",
        )
        choose("schedule.order", self.order, ("begun", "finished"))
        choose("schedule.stale", self.stale, ("drop", "train"))
        require(
            self.max_refill_rounds >= 1,
            "schedule.max_refill_rounds",
            self.max_refill_rounds,
            "must be at least 1",
        )
