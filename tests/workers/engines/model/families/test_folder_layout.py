"""An exported folder has the tensors of the folder that was read: names, shapes, types, bits."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from families import tiny_model

from workers.engines.model.families.folder_layout import (
    stored_dtype,
    stored_tensors,
)
from workers.engines.model.lora import adapter_name
from workers.engines.model.lora_settings import LoraSettings
from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.settings import ZeroSettings

WEIGHTS = "model.safetensors"


def folder_of(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model = tiny_model(family)
    for buffer in model.buffers():  # as a checkpoint's, unlike a fresh model's
        if buffer.dtype == torch.float32 and buffer.requires_grad is False and buffer.dim() == 1:
            buffer.uniform_(0.5, 1.5)
    model.to(dtype).save_pretrained(folder)
    return folder


def engine_of(folder: Path, **changes: object) -> PolicyEngine:
    return PolicyEngine(ZeroSettings(model=str(folder), exports=True, **changes))


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize(
    "family",
    [
        "deepseek_v3",
        "gemma3_text",
        "glm4_moe",
        "gpt2",
        "granitemoe",
        "llama",
        "mixtral",
        "phimoe",
        "qwen3_moe",
    ],
)
def test_an_export_is_the_folder_that_was_read_bit_for_bit(
    family: str, stage: int, tmp_path: Path
) -> None:
    source = folder_of(family, tmp_path / "source")
    engine = engine_of(source, zero_stage=stage)
    engine.export_hf(tmp_path / "out")
    engine.close()
    want, got = load_file(source / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    tokens = torch.tensor([[5, 9, 3, 17, 4, 8]])
    first, second = (
        AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")(tokens).logits
        for path in (source, tmp_path / "out")
    )
    assert torch.equal(first, second)


def test_the_correction_of_the_experts_scores_is_exported(tmp_path: Path) -> None:
    source = folder_of("glm4_moe", tmp_path / "source")
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert load_file(source / WEIGHTS)[name].min() > 0.4
    assert name in stored_tensors(source)


@pytest.mark.parametrize("dtype", ["source", "float32", "float16"])
def test_the_type_is_that_of_the_folder_or_the_chosen_one(tmp_path: Path, dtype: str) -> None:
    source = folder_of("qwen3", tmp_path / "source", torch.bfloat16)
    engine = engine_of(source, export_dtype=dtype)
    assert next(engine.hf_model.parameters()).dtype == torch.float32
    engine.export_hf(tmp_path / "out")
    engine.close()
    want = torch.bfloat16 if dtype == "source" else getattr(torch, dtype)
    assert {tensor.dtype for tensor in stored_tensors(tmp_path / "out").values()} == {want}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == want


def test_the_type_of_a_folder_is_that_of_most_of_its_elements(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3, dtype=torch.float32), "b": torch.ones(4, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / WEIGHTS)
    assert stored_dtype(stored_tensors(tmp_path)) == torch.bfloat16
    assert stored_dtype({}) == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.layers.0.extra.weight": torch.ones(2)}, "layers.0.extra.weight is lost"),
        ({"model.layers.1.input_layernorm.weight": None}, "input_layernorm.weight is not in the"),
    ],
)
def test_a_gap_between_model_and_folder_is_refused_before_training(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    source = folder_of("llama", tmp_path / "source")
    tensors = {**load_file(source / WEIGHTS), **change}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, source / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        engine_of(source)


def test_tensors_that_the_model_leaves_out_are_carried_along(tmp_path: Path) -> None:
    source = folder_of("deepseek_v3", tmp_path / "source")
    predictor = {"model.layers.61.eh_proj.weight": torch.arange(4.0)}
    tensors = load_file(source / WEIGHTS) | predictor
    save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
    engine = engine_of(source)
    engine.export_hf(tmp_path / "out")
    engine.close()
    got = load_file(tmp_path / "out" / WEIGHTS)
    assert got.keys() == tensors.keys()
    assert torch.equal(got["model.layers.61.eh_proj.weight"], torch.arange(4.0))


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_an_adapter_on_a_mixture_of_experts_leaves_its_names(
    family: str, stage: int, tmp_path: Path
) -> None:
    source = folder_of(family, tmp_path / "source")
    engine = engine_of(source, zero_stage=stage, adapter=LoraSettings(rank=2))
    trained = [name for name, p in engine.hf_model.named_parameters() if p.requires_grad]
    assert all(adapter_name(name) for name in trained)
    assert any(".experts." in name for name in trained)
    engine.export_hf(tmp_path / "out")
    engine.close()
    want, got = load_file(source / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())  # B is zero


def test_an_adapter_on_experts_of_another_layout_is_refused(tmp_path: Path) -> None:
    source = folder_of("jetmoe", tmp_path / "source")
    with pytest.raises(ValueError, match="gate_up_proj is no linear layer of this model"):
        engine_of(source, adapter=LoraSettings(target_modules=("gate_up_proj",)))
