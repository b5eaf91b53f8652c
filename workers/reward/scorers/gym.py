"""Score with reasoning-gym's own scorers, one for each of its datasets, with their partial credit.

Runs in a scoring process. The input is the JSON column `entry`, which `workers.tasks.reasoning`
wrote, with the dataset's name and configuration, question, answer and metadata. No data is made
here.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workers.reward.base import RewardSample
from workers.reward.scorers.exact import check_stop, cut_at


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasoningGym:
    """Score that the sample's reasoning-gym dataset gives the answer, 0 to 1.

    Attributes:
        entry_column: the column with reasoning-gym's entry as JSON.
        answer_pattern: a regular expression whose first group is the answer (its last match counts;
            without a match the score is 0), None to take the whole response.
        stop_at: only the response before this text counts, None for all of it.
    """

    entry_column: str = "entry"
    answer_pattern: str | None = None
    stop_at: str | None = None

    def __post_init__(self) -> None:
        check_stop(self.stop_at)
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ModuleNotFoundError(
                "reward=reasoning_gym needs the package reasoning-gym: "
                "run `pip install reasoning-gym`"
            )
        if self.answer_pattern is not None:
            try:
                groups = re.compile(self.answer_pattern, re.DOTALL).groups
            except re.error as error:
                raise ValueError(
                    f"answer_pattern {self.answer_pattern!r} is not a regular expression: {error}"
                ) from error
            if groups < 1:
                raise ValueError(
                    f"answer_pattern {self.answer_pattern!r} needs a group (...) around the answer"
                )

    def prepare(self) -> None:
        """Import reasoning-gym, which takes over a second."""
        import reasoning_gym  # noqa: F401

    def __call__(self, sample: RewardSample) -> dict[str, float]:
        """Score one response; part "answered" is 1 if an answer was found, else 0."""
        answer = self._answer(cut_at(sample.response, self.stop_at))
        if answer is None:
            return {"reward": 0.0, "answered": 0.0}
        if self.entry_column not in sample.columns:
            raise KeyError(
                f"no column {self.entry_column!r} among {sorted(sample.columns)}; "
                "workers.tasks.reasoning writes it"
            )
        entry = json.loads(sample.columns[self.entry_column])
        score = _score_function(entry["dataset"], json.dumps(entry["config"], sort_keys=True))
        return {"reward": float(score(answer, entry)), "answered": 1.0}

    def _answer(self, response: str) -> str | None:
        if self.answer_pattern is None:
            return response.strip()
        matches = list(re.finditer(self.answer_pattern, response, re.DOTALL))
        return matches[-1].group(1).strip() if matches else None


@functools.cache
def _score_function(dataset: str, config: str) -> Callable[[str, dict[str, Any]], float]:
    import reasoning_gym

    # Some datasets read their configuration while scoring. The size keeps construction cheap.
    built = reasoning_gym.create_dataset(dataset, size=1, seed=0, **json.loads(config))
    return built.score_answer
