"""Sizes of model folders that only transformers can count, against published numbers."""

import json
from pathlib import Path

import pytest

from conf.schema import ModelConfig
from orchestrator.planning.architecture import architecture_of, num_parameters

QWEN3_30B_A3B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
}
MIXTRAL_8X7B = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
}
GEMMA2_9B = {  # ties its head by default, without saying so in the file
    "model_type": "gemma2",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("record", "total", "active", "attention", "width"),
    [
        (QWEN3_30B_A3B, 30.53, 3.35, 4096, 6144),
        (MIXTRAL_8X7B, 46.70, 12.88, 4096, 28672),
        (GEMMA2_9B, 9.24, 9.24, 4096, 14336),
    ],
)
def test_a_folder_is_counted_as_transformers_counts_it(
    tmp_path: Path, record: dict, total: float, active: float, attention: int, width: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(record))
    sizes = architecture_of(ModelConfig(name="hf", path=str(tmp_path)))
    assert sizes is not None
    assert num_parameters(sizes) / 1e9 == pytest.approx(total, abs=0.01)
    assert sizes.active_parameters is not None
    assert sizes.active_parameters / 1e9 == pytest.approx(active, abs=0.01)
    assert sizes.num_heads * sizes.head_dim == attention
    assert sizes.intermediate_size == width


def test_nothing_is_claimed_about_a_family_that_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_family"}))
    assert architecture_of(ModelConfig(name="hf", path=str(tmp_path))) is None
