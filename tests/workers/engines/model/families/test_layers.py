"""Layers that packed batches cannot compute are refused, and dropout is off."""

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from workers.engines.model.families.layers import check_layers, remove_dropout, set_attention

SIZES: dict[str, Any] = {
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def model_of(**settings: Any) -> Any:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**settings))
    return SimpleNamespace(config=config)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"layer_types": ["linear_attention"]}, "linear_attention"),
        ({"attention_chunk_size": 8192}, "attention_chunk_size=8192"),
        (
            {"model_type": "phimoe", "sliding_window": 16, "max_position_embeddings": 32},
            "sliding_window=16",
        ),
    ],
)
def test_other_layers_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"do not support: {named}"):
        check_layers(model_of(**settings))
    check_layers(model_of(layer_types=["full_attention", "sliding_attention"]))


def test_an_attention_that_a_model_does_not_know_is_refused() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    set_attention(model, "eager")
    with pytest.raises(ValueError, match=r"takes no attention but its own, not learner\.attention"):
        set_attention(model, "nonsense")


def test_every_rate_of_dropout_becomes_zero() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.3))
    model.extra = nn.Dropout(0.5)
    remove_dropout(model)
    assert model.extra.p == 0.0
    assert model.model.layers[0].self_attn.attention_dropout == 0.0
