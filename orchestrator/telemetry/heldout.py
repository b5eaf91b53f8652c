"""Hold the result of an evaluation on held-out prompts: metrics, and every answer.

The driver makes the result (`orchestrator/supply/evaluation.py`) and writes a file of it. Nothing
is evaluated here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class HeldoutAnswer:
    """One held-out sample.

    Example:
        HeldoutAnswer(
            prompt_uid="7", prompt="2+3=", response="5", ground_truth="5", reward=1.0,
            outcome="scored",
        )
    """

    prompt_uid: str
    prompt: str
    response: str
    ground_truth: str | list[str] | None
    reward: float | None  # None if scoring failed
    outcome: str
    correct: bool | None = None  # as the scorer says; None if it says nothing


@dataclass(frozen=True, kw_only=True)
class HeldoutResult:
    """The result of one evaluation.

    Example, one prompt with one sample:
        HeldoutResult(
            metrics={"mean": 1.0, "pass@1": 1.0, "failed_frac": 0.0, "response_tokens_mean": 2.0},
            answers=(
                HeldoutAnswer(
                    prompt_uid="7", prompt="2+3=", response="5", ground_truth="5", reward=1.0,
                    outcome="scored",
                ),
            ),
        )

    Attributes:
        metrics: `mean`, `pass@1`, `pass@2`, ..., `maj@k`, `failed_frac`, `response_tokens_mean`.
        answers: every sample, in the order of the prompts.
    """

    metrics: dict[str, float]
    answers: tuple[HeldoutAnswer, ...]

    def write(self, path: Path) -> None:
        """Write metrics and answers as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"metrics": self.metrics, "answers": [asdict(answer) for answer in self.answers]}
        path.write_text(json.dumps(record, indent=1) + "\n")
