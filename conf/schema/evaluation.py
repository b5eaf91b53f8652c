"""Evaluation: named held-out sets beside `data.eval_path`.

Read by the driver. Opens no file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from conf.schema.checks import require
from conf.schema.data import check_name, check_template
from conf.schema.environment import EnvironmentConfig
from conf.schema.rollout import SamplingConfig


@dataclass(kw_only=True)
class AnchorConfig:
    """Published score of a set, shown beside the measured one."""

    model: str = MISSING
    metric: str = "pass@1"
    value: float = MISSING  # 0 to 1
    source: str = MISSING  # paper and table


@dataclass(kw_only=True)
class EvaluationSetConfig:
    """One held-out set: its file, the form of its prompts, sampling and scorer."""

    path: str | None = None  # Parquet, JSON lines, or a folder of one of them or of Arrow files
    build: Any = None  # in place of path: `_target_` of a function that writes eval.parquet
    prompt_column: str = "prompt"
    ground_truth_column: str = "ground_truth"
    image_column: str | None = None  # null: prompts show no images
    prompt_template: str | None = None  # text around the last user message, with {prompt}
    as_chat: bool | None = None  # null: data.as_chat
    samples_per_prompt: int | None = None  # k; null: rollout.eval_samples_per_prompt
    sampling: SamplingConfig | None = None  # null: rollout.eval_sampling
    scorer: Any = None  # null: reward.scorer
    environment: EnvironmentConfig | None = None  # null: environment
    limit: int = 0  # prompts used; 0: all
    anchors: list[AnchorConfig] = field(default_factory=list)

    def check(self, key: str) -> None:
        """Raise a ValueError for an impossible value that stands under `key`."""
        require(
            (self.path is None) != (self.build is None),
            f"{key}.path",
            self.path,
            f"give a file or folder, or {key}.build, a function that writes eval.parquet",
        )
        check_template(f"{key}.prompt_template", self.prompt_template)
        require(
            self.samples_per_prompt is None or self.samples_per_prompt >= 1,
            f"{key}.samples_per_prompt",
            self.samples_per_prompt,
            "must be at least 1",
        )
        require(self.limit >= 0, f"{key}.limit", self.limit, "must not be negative; 0 takes all")
        if self.sampling is not None:
            self.sampling.check(f"{key}.sampling")
        if self.environment is not None:
            self.environment.check(f"{key}.environment")


@dataclass(kw_only=True)
class EvaluationConfig:
    """Held-out sets that are scored together with `data.eval_path`."""

    sets: dict[str, EvaluationSetConfig] = field(default_factory=dict)

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        for name, each in self.sets.items():
            check_name("evaluation.sets", name)
            each.check(f"evaluation.sets.{name}")
