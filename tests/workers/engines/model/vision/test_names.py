"""What a run freezes follows from names: the tower by default, or what patterns say."""

import json
import struct
from pathlib import Path

import pytest

from workers.engines.model.lora_settings import linear_names
from workers.engines.model.vision.names import frozen_names, is_vision_name

QWEN = [
    "model.visual.blocks.0.attn.qkv.weight",
    "model.visual.merger.mlp.0.weight",
    "model.language_model.layers.0.mlp.up_proj.weight",
    "lm_head.weight",
]


def test_tower_and_merger_are_frozen_where_nothing_is_said() -> None:
    assert frozen_names(QWEN, "qwen2_5_vl", None) == set(QWEN[:2])
    assert frozen_names(QWEN, "qwen2_5_vl", []) == set()
    assert frozen_names(["model.layers.0.mlp.up_proj.weight"], "llama", None) == set()
    assert is_vision_name("visual.blocks.0.attn.qkv.weight", "qwen2_5_vl")  # as folders write it
    assert not is_vision_name("visual.blocks.0.attn.qkv.weight", "llama")


def test_patterns_freeze_parts() -> None:
    assert frozen_names(QWEN, "qwen2_5_vl", ["model.visual.blocks.*", "lm_*"]) == {QWEN[0], QWEN[3]}
    with pytest.raises(ValueError, match=r"'model.vision.\*' matches no parameter"):
        frozen_names(QWEN, "qwen2_5_vl", ["model.vision.*"])
    with pytest.raises(ValueError, match="leaves nothing to train"):
        frozen_names(QWEN, "qwen2_5_vl", ["*"])


def test_an_adapter_is_not_offered_the_layers_of_a_tower(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    header = {
        name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
        for name in ("visual.blocks.0.attn.qkv.weight", "model.layers.0.mlp.up_proj.weight")
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    assert linear_names(tmp_path) == ["model.layers.0.mlp.up_proj"]
