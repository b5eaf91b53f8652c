"""The policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from conf.schema.checks import choose, require


@dataclass(kw_only=True)
class ArchitectureConfig:
    """Sizes of a dense decoder, from which memory follows without its weights."""

    num_layers: int = MISSING
    hidden_size: int = MISSING
    intermediate_size: int = MISSING  # of the gated feed-forward network
    num_heads: int = MISSING
    num_kv_heads: int = MISSING
    head_dim: int = MISSING
    vocab_size: int = MISSING
    tied_embeddings: bool = False
    attention_bias: bool = False  # on query, key and value, as in Qwen2
    qk_norm: bool = False  # a norm of head_dim on query and key, as in Qwen3
    context: int = MISSING  # longest sequence, tokens

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        for name, value in vars(self).items():
            if isinstance(value, int) and not isinstance(value, bool):
                require(value >= 1, f"model.architecture.{name}", value, "must be at least 1")
        require(
            self.num_heads % self.num_kv_heads == 0,
            "model.architecture.num_kv_heads",
            self.num_kv_heads,
            f"must divide model.architecture.num_heads={self.num_heads}",
        )


@dataclass(kw_only=True)
class ModelConfig:
    """The policy: a Hugging Face folder, or a command of this project that builds one."""

    name: str = MISSING
    path: str | None = None  # folder with config.json, safetensors and a tokenizer
    build: Any = None  # `_target_` of a function that returns such a folder (cached)
    dtype: str = "float32"  # of the learner's forward and backward; weights stay float32
    architecture: ArchitectureConfig | None = None  # null: read from the folder, if it is there

    def check(self) -> None:
        """Name the value that can't be, and the remedy."""
        choose("model.dtype", self.dtype, ("float32", "bfloat16"))
        require(
            (self.path is None) != (self.build is None),
            "model.path",
            self.path,
            "give either model.path (a Hugging Face folder) or model.build, not both or none",
        )
        if self.architecture is not None:
            self.architecture.check()
