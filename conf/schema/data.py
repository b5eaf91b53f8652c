"""Prompts: files, columns and lengths.

Read by the driver. Opens no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from conf.schema.checks import require


@dataclass(kw_only=True)
class DataConfig:
    """Prompts in Parquet: the files, and the names of their columns."""

    name: str = MISSING
    train_path: str | None = None  # a Parquet file or a folder of them
    eval_path: str | None = None
    build: Any = None  # `_target_` of a function that generates both into a folder
    prompt_column: str = "prompt"  # string, or list of {role, content} messages
    ground_truth_column: str = "ground_truth"
    max_prompt_tokens: int = 1024
    shuffle: bool = True
    eval_limit: int = 0  # held-out prompts used; 0: all

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        require(
            (self.train_path is None) != (self.build is None),
            "data.train_path",
            self.train_path,
            "give either data.train_path (Parquet) or data.build, not both or none",
        )
        require(
            self.max_prompt_tokens >= 1,
            "data.max_prompt_tokens",
            self.max_prompt_tokens,
            "must be at least 1",
        )
        require(self.eval_limit >= 0, "data.eval_limit", self.eval_limit, "must not be negative")
