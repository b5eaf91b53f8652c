"""Score the siblings of one prompt: each as it finishes, or all in one call after the last.

The rollout worker makes one `SiblingScores` for each group. Nothing is scored here: the reward
client is asked.
"""

from __future__ import annotations

import asyncio

from workers.reward.base import RewardResult, RewardSample
from workers.reward.client import RewardClient


class SiblingScores:
    """Scores of one group.

    Args:
        rewards: client of the reward workers.
        num_samples: siblings of the group.
        together: True if the scorer wants all siblings in one call.
    """

    def __init__(self, rewards: RewardClient, *, num_samples: int, together: bool) -> None:
        self._rewards, self._together = rewards, together
        self._num_missing = num_samples
        self._finished: dict[int, RewardSample] = {}
        self._results: asyncio.Future[dict[int, RewardResult]] | None = None

    async def score(self, number: int, sample: RewardSample) -> RewardResult:
        """Return the result of sibling `number`; waits for the others if they are scored together.

        Siblings are handed to the scorer in the order of their numbers.
        """
        if not self._together:
            return await self._rewards.score(sample)
        if self._results is None:
            self._results = asyncio.get_running_loop().create_future()
        results = self._results
        self._finished[number] = sample
        self._num_missing -= 1
        await self._ask_if_complete()
        return (await results)[number]

    async def leave_out(self) -> None:
        """Go on without one sibling, which has no response to score."""
        self._num_missing -= 1
        await self._ask_if_complete()

    async def _ask_if_complete(self) -> None:
        if not self._together or self._num_missing or self._results is None:
            return
        numbers = sorted(self._finished)
        try:
            scores = await self._rewards.score_group(tuple(self._finished[k] for k in numbers))
        except BaseException as error:  # the siblings that wait must not wait for ever
            self._results.set_exception(error)
            raise
        self._results.set_result(dict(zip(numbers, scores, strict=True)))
