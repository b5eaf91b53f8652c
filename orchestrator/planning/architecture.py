"""Read a model's sizes from the configuration or its folder, and count the model's parameters.

Runs in the driver, for the plan and the doctor. Loads no weights. Families whose sizes alone do not
say it (mixtures of experts, further norms, projections of another shape) are counted by
transformers.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from conf.schema import ArchitectureConfig, ModelConfig, TowerConfig
from workers.data.images.settings import QWEN
from workers.engines.model.families.experts import active_parameters
from workers.engines.model.vision.names import VISION_PREFIXES, is_vision_name

# Families whose parameters follow from the sizes, by `num_parameters`; others are counted.
BY_SIZES = (None, "llama", "mistral", "qwen2", "qwen3")


def architecture_of(model: ModelConfig) -> ArchitectureConfig | None:
    """Return the sizes that the configuration names, or those of the folder; None without either.

    Raises:
        ValueError: the folder holds a model of other sizes than the configuration names.
    """
    found = None if model.path is None else _read(Path(model.path) / "config.json")
    named = model.architecture
    if found is not None and named is not None:
        for name in ("num_layers", "hidden_size", "num_heads", "vocab_size"):
            if getattr(found, name) != getattr(named, name):
                raise ValueError(
                    f"model={model.name} has {name}={getattr(named, name)}, but the folder "
                    f"{model.path} has {getattr(found, name)}: give the folder of that model, "
                    "or choose model=hf"
                )
    return named or found


def _read(path: Path) -> ArchitectureConfig | None:
    """Read sizes from a Hugging Face `config.json` of a decoder; None for another model."""
    if not path.is_file():
        return None
    text = path.read_text()
    record = json.loads(text)
    try:
        if record.get("model_type") not in BY_SIZES:
            return _counted(path.parent, text)
        num_heads = record["num_attention_heads"]
        return ArchitectureConfig(
            num_layers=record["num_hidden_layers"],
            hidden_size=record["hidden_size"],
            intermediate_size=record["intermediate_size"],
            num_heads=num_heads,
            num_kv_heads=record.get("num_key_value_heads") or num_heads,
            head_dim=record.get("head_dim") or record["hidden_size"] // num_heads,
            vocab_size=record["vocab_size"],
            tied_embeddings=record.get("tie_word_embeddings", False),
            attention_bias=record.get("model_type") == "qwen2",
            qk_norm=record.get("model_type") == "qwen3",
            context=record["max_position_embeddings"],
        )
    except (AttributeError, KeyError):  # another kind of model: nothing is claimed about it
        return None


@functools.lru_cache(maxsize=8)
def _counted(folder: Path, record: str) -> ArchitectureConfig | None:
    """Count a folder's model on a device without memory; None for no decoder of transformers.

    Args:
        folder: of the model.
        record: text of its `config.json`: another text is counted anew.
    """
    import torch  # the driver needs both for these families only
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    from workers.engines.model.lora import adaptable_weights

    del record
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        sees = config.model_type in VISION_PREFIXES
        with torch.device("meta"):
            kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
            model = kind.from_config(config)
    except (ValueError, KeyError, ImportError):  # a family that transformers does not know
        return None
    text = config.get_text_config()
    heads = text.num_attention_heads
    sizes = [(name, parameter.numel()) for name, parameter in model.named_parameters()]
    adapted = (weight.shape for weight in adaptable_weights(model).values())
    dense = ArchitectureConfig(
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=_width(text),
        num_heads=heads,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab_size=text.vocab_size,
        tied_embeddings=bool(text.tie_word_embeddings),
        context=text.max_position_embeddings,
    )
    return replace(
        dense,
        total_parameters=sum(size for _, size in sizes),
        active_parameters=active_parameters(sizes, text),
        adapter_parameters=sum(shape[:-2].numel() * sum(shape[-2:]) for shape in adapted),
        tower=_tower(config, sizes) if sees else None,
    )


def _tower(config: Any, sizes: list[tuple[str, int]]) -> TowerConfig:
    """Read the sizes of a vision tower from transformers' configuration."""
    tower = config.vision_config
    pixels = tower.patch_size**2
    return TowerConfig(
        parameters=sum(size for name, size in sizes if is_vision_name(name, config.model_type)),
        num_layers=tower.depth if config.model_type == QWEN else tower.num_hidden_layers,
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        patches_per_token=(
            tower.spatial_merge_size if config.model_type == QWEN else config.scale_factor
        )
        ** 2,
        values_per_patch=3 * pixels * getattr(tower, "temporal_patch_size", 1),
    )


def _width(config: Any) -> int:
    """Return the feed-forward size of one token in a layer: that of all experts it passes."""
    size = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    return int(size * (getattr(config, "num_experts_per_tok", None) or 1))


def num_parameters(model: ArchitectureConfig) -> int:
    """Count the parameters P: embeddings, layers and the last norm.

    A layer has attention, a gated feed-forward network and two norms, unless transformers counted
    another family.
    """
    if model.total_parameters is not None:
        return model.total_parameters
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    attention = model.hidden_size * 2 * (queries + keys)
    if model.attention_bias:
        attention += queries + 2 * keys
    if model.qk_norm:
        attention += 2 * model.head_dim
    feed_forward = 3 * model.hidden_size * model.intermediate_size
    layer = attention + feed_forward + 2 * model.hidden_size
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tied_embeddings else 2)
    return model.num_layers * layer + embeddings + model.hidden_size


def layer_bytes_per_token(
    model: ArchitectureConfig, element: int, held: int = 4, *, frozen: bool = False
) -> float:
    """Return the bytes that autograd saves for one token in one layer.

    Norms keep their input in float32, and what their weights multiply unless those are frozen; the
    two of a layer also their product as linear layers read it, which under autocast each of five
    casts for itself. All other tensors have elements of `element` bytes: attention keeps four of
    size q (with keys and values repeated to all heads), the feed-forward network four of size i.

    Args:
        model: sizes.
        element: bytes of an element of a matrix product.
        held: bytes of a weight.
        frozen: the norms' weights do not train.
    """
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    read = 2 if element == held else 5
    norms = model.hidden_size * (2 * (4 + (0 if frozen else held)) + read * element)
    norms += (queries + keys) * (4 + (0 if frozen else element)) * model.qk_norm
    return norms + element * (4 * model.intermediate_size + 4 * queries)
