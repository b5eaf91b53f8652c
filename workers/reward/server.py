"""Answer groups of samples with their scores: the part of a scoring process that runs the scorer.

Runs in the scoring process (`child.py`). Knows no other process and no limit of time.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Any

from workers.reward.base import RewardSample, Scorer, hand_folder, score_group


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringServer:
    """Server that scores with one scorer.

    Example: ScoringServer(scorer=Exact())

    Attributes:
        scorer: of the run.
        folder: of the run, for what the scorer writes; None where it is to write nothing.
        max_memory_mib: that the process may allocate; None sets no limit.
    """

    scorer: Scorer
    folder: str | None = None
    max_memory_mib: int | None = None

    def prepare(self) -> None:
        """Prepare the scorer, if it has something to prepare, within the limit of memory."""
        if self.max_memory_mib is not None:
            limit = self.max_memory_mib << 20
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        if self.folder is not None:
            hand_folder([self.scorer], self.folder)
        prepare = getattr(self.scorer, "prepare", None)
        if prepare is not None:
            prepare()

    def serve(self, item: list[tuple[Any, ...]]) -> list[Any]:
        """Score samples: (prompt, response, ground truth, columns, messages, images) of each."""
        siblings = [
            RewardSample(
                prompt=prompt,
                response=response,
                ground_truth=ground_truth,
                columns=columns,
                messages=messages,
                images=images,
            )
            for prompt, response, ground_truth, columns, messages, images in item
        ]
        return [
            [each.outcome, each.reward, dict(each.parts), dict(each.notes), each.seconds]
            for each in score_group(self.scorer, siblings)
        ]
