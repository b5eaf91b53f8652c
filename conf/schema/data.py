"""Prompts: files, columns and lengths.

Read by the driver. Opens no file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from conf.schema.checks import require


@dataclass(kw_only=True)
class ImagesConfig:
    """Limits of the images that prompts show."""

    max_pixels: int | None = None  # of one image, which is scaled down; null: the model's own limit
    max_per_prompt: int = 8

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        require(
            self.max_pixels is None or self.max_pixels >= 1,
            "data.images.max_pixels",
            self.max_pixels,
            "must be at least 1; null takes the model's own limit",
        )
        require(
            self.max_per_prompt >= 1,
            "data.images.max_per_prompt",
            self.max_per_prompt,
            "must be at least 1; data.image_column=null is a run without images",
        )


@dataclass(kw_only=True)
class DataConfig:
    """Prompts in Parquet: the files, and the names of their columns."""

    name: str = MISSING
    train_path: str | None = None  # a Parquet file or a folder of them
    eval_path: str | None = None
    build: Any = None  # `_target_` of a function that generates both into a folder
    prompt_column: str = "prompt"  # string, or list of {role, content} messages
    ground_truth_column: str = "ground_truth"
    image_column: str | None = None  # path, bytes, {bytes, path} or a list of them; null: no images
    images: ImagesConfig = field(default_factory=ImagesConfig)
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
        self.images.check()
        require(self.eval_limit >= 0, "data.eval_limit", self.eval_limit, "must not be negative")
