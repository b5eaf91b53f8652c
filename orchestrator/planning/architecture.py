"""Read a model's sizes from the configuration or its folder, and count the model's parameters.

Runs in the driver, for the plan and the doctor. Loads no weights.
"""

from __future__ import annotations

import json
from pathlib import Path

from conf.schema import ArchitectureConfig, ModelConfig


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
    """Read sizes from a Hugging Face `config.json` of a dense decoder; None for another model."""
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    try:
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
    except KeyError:  # another kind of model: nothing is claimed about it
        return None


def num_parameters(model: ArchitectureConfig) -> int:
    """Count the parameters P: embeddings, layers and the last norm.

    A layer has attention, a gated feed-forward network and two norms.
    """
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
