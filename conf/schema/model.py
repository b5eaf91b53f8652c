"""The policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from conf.schema.checks import choose, require


@dataclass(kw_only=True)
class ModelConfig:
    """The policy: a Hugging Face folder, or a command of this project that builds one."""

    name: str = MISSING
    path: str | None = None  # folder with config.json, safetensors and a tokenizer
    build: Any = None  # `_target_` of a function that returns such a folder (cached)
    dtype: str = "float32"  # of the learner's forward and backward; weights stay float32

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        choose("model.dtype", self.dtype, ("float32", "bfloat16"))
        require(
            (self.path is None) != (self.build is None),
            "model.path",
            self.path,
            "give either model.path (a Hugging Face folder) or model.build, not both or none",
        )
