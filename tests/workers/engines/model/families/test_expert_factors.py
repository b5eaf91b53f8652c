"""Factors beside stacked experts: their product by hand, in each family, and their names."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from families import tiny_model

from workers.engines.model.families.expert_factors import (
    HOLDER,
    ExpertFactors,
    attach_factors,
    expert_stacks,
)
from workers.engines.model.lora import adapter_name, peft_tensors
from workers.engines.model.lora_settings import check_published, linear_names

TOKENS = torch.tensor([[5, 9, 3, 17, 4, 8, 11, 22]])
FAMILIES = [
    "afmoe",
    "cohere2_moe",
    "deepseek_v3",
    "ernie4_5_moe",
    "flex_olmo",
    "glm4_moe",
    "granitemoe",
    "hunyuan_v1_moe",
    "minimax",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
]


def test_each_row_has_the_product_of_its_own_expert() -> None:
    """Rows 0 and 1 go to expert 0, none to expert 1, row 2 to expert 2; rank 1, scale 2."""
    factors = ExpertFactors(nn.Parameter(torch.zeros(3, 4, 4)), rank=1, scale=2.0)
    assert factors.lora_B.abs().max() == 0
    assert 0 < factors.lora_A.abs().max() <= 1 / 4**0.5
    with torch.no_grad():
        factors.lora_A.copy_(
            torch.tensor([[[1.0, 2.0, 0.0, 0.0]], [[9.0] * 4], [[0.0, -1.0, 0.0, 0.0]]])
        )
        factors.lora_B.copy_(torch.tensor([[3.0, 0, 0, 0], [9.0] * 4, [5.0, 0, 0, 1.0]])[..., None])
    rows = torch.tensor([[1.0, 0.0, 7.0, 0.0], [1.0, 1.0, 0.0, 0.0], [4.0, 2.0, 0.0, 8.0]])
    out = factors(rows, torch.tensor([2, 2, 3], dtype=torch.int32))
    assert out.tolist() == [[6.0, 0, 0, 0], [18.0, 0, 0, 0], [-20.0, 0, 0, -4.0]]
    out[:, 0].sum().backward()
    # dL/dA = scale B x and dL/dB = scale (A x), summed over the rows of an expert.
    assert factors.lora_A.grad[:, 0].tolist() == [[12, 6, 42, 0], [0] * 4, [40, 20, 0, 80]]
    assert factors.lora_B.grad[:, 0, 0].tolist() == [8.0, 0.0, -4.0]


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_with_factors_are_the_experts_that_they_are_merged_into(family: str) -> None:
    model = tiny_model(family).eval()
    stacks = expert_stacks(model)
    with torch.no_grad():
        base = model(TOKENS).logits
        modules = {name.rpartition(".")[0] for name in stacks}
        for name in modules:
            attach_factors(
                model.get_submodule(name), ["gate_up_proj", "down_proj"], rank=3, scale=1.5
            )
        assert torch.equal(model(TOKENS).logits, base)  # B is zero
        held = {
            f"{name}.{leaf}": factors
            for name in modules
            for leaf, factors in getattr(model.get_submodule(name), HOLDER).items()
        }
        assert held.keys() == stacks.keys()
        torch.manual_seed(1)
        for factors in held.values():
            factors.lora_B.normal_(std=0.2)
        adapted = model(TOKENS).logits
        for factors in held.values():
            factors.enable_adapters(False)
        assert torch.equal(model(TOKENS).logits, base)
        for name, factors in held.items():
            stacks[name] += 1.5 * factors.lora_B @ factors.lora_A
        merged = model(TOKENS).logits
    assert (adapted - base).abs().max() > 1e-2
    torch.testing.assert_close(adapted, merged, rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", ["gpt_oss", "jetmoe", "llama"])
def test_other_experts_have_no_factors(family: str) -> None:
    """Those of GPT-OSS are transposed, JetMoE's run by themselves, Llama has none."""
    assert expert_stacks(tiny_model(family)) == {}


def test_the_names_and_the_layout_of_peft() -> None:
    """Two experts, rank 2; peft wraps down_proj around gate_up_proj."""
    experts = nn.Module()
    experts.gate_up_proj = nn.Parameter(torch.zeros(2, 4, 3))
    experts.down_proj = nn.Parameter(torch.zeros(2, 3, 1))
    attach_factors(experts, ["down_proj", "gate_up_proj"], rank=2, scale=1.0)
    model = nn.ModuleDict({"experts": experts})
    names = [adapter_name(name) for name, _ in model.named_parameters()]
    held = "base_model.model.experts"
    assert names == [None, None] + [
        f"{held}.{leaf}.lora_{factor}.weight"
        for leaf in ("gate_up_proj", "down_proj")
        for factor in "AB"
    ]
    a = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])  # down_proj: [E, r, in]
    b = torch.arange(12.0).view(2, 3, 2)  # [E, out, r]
    gate_up = torch.zeros(2, 2, 3), torch.zeros(2, 4, 2)
    tensors = dict(zip(names[2:], (*gate_up, a, b), strict=True))
    found = peft_tensors(model, tensors)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        f"{held}.lora_A.weight": (4, 1),
        f"{held}.lora_B.weight": (3, 4),
        f"{held}.base_layer.lora_A.weight": (4, 3),
        f"{held}.base_layer.lora_B.weight": (4, 4),
    }
    assert found[f"{held}.lora_A.weight"].tolist() == [[1.0], [2.0], [3.0], [4.0]]
    # Column r of expert e is column 2 r + e.
    assert found[f"{held}.lora_B.weight"].tolist() == [[0, 6, 1, 7], [2, 8, 3, 9], [4, 10, 5, 11]]


def test_targets_in_a_folder_go_by_the_names_of_transformers(tmp_path: Path) -> None:
    block = "model.layers.0.block_sparse_moe"
    names = [f"{block}.experts.{e}.w{w}.weight" for e in range(2) for w in (1, 2, 3)]
    names += [f"{block}.gate.weight", "model.layers.0.self_attn.q_proj.weight"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "model.safetensors")
    found = linear_names(tmp_path)
    assert found == [
        f"{block}.experts.down_proj",
        f"{block}.experts.gate_up_proj",
        "model.layers.0.self_attn.q_proj",
    ]
    save_file(
        {"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(2, 4, 2)},
        tmp_path / "model.safetensors",
    )
    assert linear_names(tmp_path) == ["model.layers.0.mlp.experts.gate_up_proj"]
    check_published("merged", found)
    with pytest.raises(ValueError, match=r"no adapter to experts \(model\..*down_proj, .*q_proj"):
        check_published("adapter", found)
