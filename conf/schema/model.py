"""Policy model: folder, sizes, precision, adapter.

Read by the driver. Reads no weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from conf.schema.checks import choose, require

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(kw_only=True)
class TowerConfig:
    """Sizes of the tower of a vision-language model, and of what it reads."""

    parameters: int = MISSING  # of tower and connector, which the model's total contains
    num_layers: int = MISSING
    hidden_size: int = MISSING
    intermediate_size: int = MISSING
    patches_per_token: int = MISSING  # patches behind one image token
    values_per_patch: int = MISSING  # colours of the pixels of a patch

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        for name, value in vars(self).items():
            require(value >= 1, f"model.architecture.tower.{name}", value, "must be at least 1")


@dataclass(kw_only=True)
class ArchitectureConfig:
    """Sizes of a decoder, from which memory follows without its weights."""

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
    total_parameters: int | None = None  # null: of a dense decoder of these sizes
    active_parameters: int | None = None  # that one token passes; null: all
    adapter_parameters: int | None = None  # of rank 1 on all targets; null: of a dense decoder
    tower: TowerConfig | None = None  # null: a model without images

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        if self.tower is not None:
            self.tower.check()
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
class AdapterConfig:
    """Choice of what trains: the policy's own weights, or low-rank matrices beside them."""

    name: str = "none"  # none, lora
    rank: int = 16
    alpha: float = 32.0  # the product B A is scaled by alpha / rank
    target_modules: Any = "all-linear"  # or a list of names, such as q_proj, experts.down_proj
    publish: str = "merged"  # into the engines' weights, or as an adapter beside them

    @property
    def trains(self) -> bool:
        """True where there is an adapter, which then is all that trains."""
        return self.name != "none"

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        choose("model.adapter.name", self.name, ("none", "lora"))
        require(self.rank >= 1, "model.adapter.rank", self.rank, "must be at least 1")
        require(self.alpha > 0, "model.adapter.alpha", self.alpha, "must be positive")
        targets = self.target_modules
        named = isinstance(targets, list) and all(isinstance(name, str) for name in targets)
        require(
            targets == "all-linear" or (named and bool(targets)),
            "model.adapter.target_modules",
            targets,
            "must be all-linear or a list of layer names, such as [q_proj,v_proj]",
        )
        choose("model.adapter.publish", self.publish, ("merged", "adapter"))


@dataclass(kw_only=True)
class ModelConfig:
    """Policy model: a Hugging Face folder, or a function of this project that builds one."""

    name: str = MISSING
    path: str | None = None  # folder with config.json, safetensors and a tokenizer
    build: Any = None  # `_target_` of a function that returns such a folder (cached)
    dtype: str = "auto"  # of the matrix products of learner, reference and critic
    param_dtype: str = "auto"  # of their weights; the optimizer keeps float32 ones besides
    architecture: ArchitectureConfig | None = None  # null: read from the folder, if it is there
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    freeze: Any = None  # patterns of parameters that don't train; null: tower of a vision model

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        self.adapter.check()
        self._check_dtypes()
        patterns = self.freeze
        require(
            patterns is None
            or (isinstance(patterns, list) and all(isinstance(name, str) for name in patterns)),
            "model.freeze",
            patterns,
            "must be null or a list of name patterns, such as ['model.visual.*']; [] trains all",
        )
        require(
            (self.path is None) != (self.build is None),
            "model.path",
            self.path,
            "give either model.path (a Hugging Face folder) or model.build, not both or none",
        )
        if self.architecture is not None:
            self.architecture.check()

    def _check_dtypes(self) -> None:
        choose("model.dtype", self.dtype, ("auto", *DTYPES))
        choose("model.param_dtype", self.param_dtype, ("auto", *DTYPES))
        require(
            "auto" in (self.dtype, self.param_dtype) or self.param_dtype in ("float32", self.dtype),
            "model.param_dtype",
            self.param_dtype,
            f"must be float32 or model.dtype={self.dtype}",
        )
        require(
            self.dtype != "float16" or self.param_dtype in ("auto", "float16"),
            "model.param_dtype",
            self.param_dtype,
            "must be float16 with model.dtype=float16, whose loss is scaled; or choose bfloat16",
        )
