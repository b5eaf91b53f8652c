"""Rule that ends a group early: its verdict can change no more, whatever is still drawn.

The driver makes it, the rollout workers apply it. Draws and scores nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """Rule that stops the siblings still being drawn once the group's verdict is settled.

    Attributes:
        settled: (rewards of the scored siblings, number of those still to come) -> True if the
            verdict on the group is the same for every reward of those.
        min_samples: siblings that must be scored before the rule applies.
    """

    settled: Callable[[Sequence[float], int], bool]
    min_samples: int

    def __call__(self, rewards: Sequence[float], num_left: int) -> bool:
        """Return True if the remaining siblings should be stopped."""
        return len(rewards) >= self.min_samples and self.settled(rewards, num_left)
