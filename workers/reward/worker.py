"""Run the reward role: a Ray actor around a pool of killable scoring processes.

Rollout workers call the actor as soon as samples finish. A failure comes back as an outcome with
its reason, never as a reward. The actor contains no scorer code: its child processes do.
"""

from __future__ import annotations

from typing import Any

from workers.reward.base import RewardResult, Siblings
from workers.reward.pool import RewardPool
from workers.reward.process import START_LIMIT_S
from workers.spans import Recorded, SpanLog


class RewardWorker:
    """Reward worker: one pool of scoring processes."""

    def __init__(
        self,
        *,
        scorer: Any,
        num_processes: int,
        timeout_s: float,
        start_s: float = START_LIMIT_S,
        folder: str | None = None,
        max_memory_mib: int | None = None,
    ) -> None:
        self._pool = RewardPool(
            scorer,
            num_processes=num_processes,
            timeout_s=timeout_s,
            start_s=start_s,
            folder=folder,
            max_memory_mib=max_memory_mib,
        )
        self.spans = SpanLog()

    async def score(self, groups: list[Siblings]) -> list[list[RewardResult]]:
        """Score samples, or whole groups; return one result per sample, in order."""
        with self.spans.doing("score"):
            return await self._pool.score_groups(groups)

    async def num_settled(self) -> int:
        """Return the number of calls of the scorer that have ended since this worker started.

        Answered while samples wait for a process: a caller sees that the worker lives.
        """
        return self._pool.num_settled

    def take_spans(self) -> Recorded:
        """Return the spans of this worker since the last call."""
        return self.spans.take()

    async def close(self) -> None:
        """End the scoring processes."""
        self._pool.close()
