"""Shards of bounded size that transformers reads as one model."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from workers.engines.zero.hf_export import export_hf

COMPANIONS = (
    "LICENSE",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "qwen.tiktoken",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
)


def test_shards_and_index(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    source = tmp_path / "source"
    source.mkdir()
    for name in (*COMPANIONS, "notes.txt", "ballast_recipe.json", "model.safetensors.index.json"):
        (source / name).write_text(name)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("tools")
    export_hf(
        tmp_path / "out",
        iter(model.named_parameters()),
        config=config,
        source=source,
        dtype=torch.float32,
        writes=True,
        shard_bytes=16_000,  # a layer's matrices: 4 x 4 KiB and 3 x 6 KiB
    )
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    shards = [name for name in files if name.endswith(".safetensors")]
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all((tmp_path / "out" / name).stat().st_size < 18_000 for name in shards)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == sorted(name for name, _ in model.named_parameters())
    assert set(COMPANIONS) <= set(files)
    assert not {"notes.txt", "ballast_recipe.json"} & set(files)
    assert (tmp_path / "out" / "additional_chat_templates" / "tools.jinja").read_text() == "tools"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name])
