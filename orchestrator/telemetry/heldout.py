"""Hold the result of an evaluation on held-out prompts: metrics, and every answer.

The driver makes the result (`orchestrator/supply/evaluation.py`) and writes a file of it. Nothing
is evaluated here.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.telemetry.counting import describe_reasons


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
    answer: str | None = None  # as the scorer finds it in the response
    heldout_set: str = ""  # its name; empty for that of `data.eval_path`


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
        metrics: `mean`, `pass@1`, `pass@2`, ..., `maj@k`, `failed_frac`, `response_tokens_mean`;
            those of a named set begin with its name, as in `aime24/mean`.
        answers: every sample, in the order of the prompts.
    """

    metrics: dict[str, float]
    answers: tuple[HeldoutAnswer, ...]

    def shown(self) -> dict[str, float]:
        """Return the metrics without the ends of intervals, for one line."""
        return {k: v for k, v in self.metrics.items() if not k.endswith(("_low", "_high"))}

    def all_failed(self) -> str | None:
        """Return the most frequent reasons if no sample was scored, else None."""
        outcomes = Counter(a.outcome for a in self.answers if a.outcome.startswith("failed:"))
        return describe_reasons(outcomes) if outcomes.total() == len(self.answers) else None

    def write(self, path: Path) -> None:
        """Write metrics and answers as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"metrics": self.metrics, "answers": [asdict(answer) for answer in self.answers]}
        path.write_text(json.dumps(record, indent=1) + "\n")
