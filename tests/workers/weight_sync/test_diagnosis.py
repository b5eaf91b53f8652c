"""Stale weights are found in modules that vLLM calls otherwise than the checkpoint does."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.models.utils import WeightsMapper

from workers.weight_sync.diagnosis import checkpoint_names, live_blocks, stale_weights
from workers.weight_sync.fingerprint import fingerprint, join_blocks

NORM = "model.language_model.norm.weight"
GATE = "model.language_model.mlp.gate_proj.weight"
UP = "model.language_model.mlp.up_proj.weight"


class FusedLinear(LinearBase):
    """A linear layer of vLLM on one device, as its CPU kernel leaves it."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], disable_tp=True)
        self.weight = nn.Parameter(weight.clone())
        self.output_partition_sizes = [3, 3]
        self.cpu_linear = F.linear


class Engine(nn.Module):
    """The decoder of a vision-language model as vLLM names its parts."""

    packed_modules_mapping: ClassVar = {"gate_up_proj": ["gate_proj", "up_proj"]}
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={"model.language_model.": "language_model.model."},
        orig_to_new_stacked={".gate_proj.": (".gate_up_proj.", 0)},
    )

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.language_model = nn.Module()
        self.language_model.model = nn.Module()
        self.language_model.model.norm = nn.LayerNorm(4, bias=False)
        self.language_model.model.norm.weight.data.copy_(weights[NORM])
        self.language_model.model.mlp = nn.Module()
        fused = torch.cat([weights[GATE], weights[UP]])
        self.language_model.model.mlp.gate_up_proj = FusedLinear(fused)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {NORM: (4,), GATE: (3, 4), UP: (3, 4)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_names_are_mapped_as_vllm_maps_them_where_it_loads() -> None:
    engine = Engine.hf_to_vllm_mapper
    model = nn.Module()
    assert checkpoint_names(model, [NORM]) == {NORM: NORM}
    model.hf_to_vllm_mapper = engine
    assert checkpoint_names(model, [NORM, GATE]) == {
        "language_model.model.norm.weight": NORM,
        "language_model.model.mlp.gate_proj.weight": GATE,  # not the matrix that it is fused into
    }


def test_a_stale_matrix_is_named_as_it_was_sent(weights: dict[str, torch.Tensor]) -> None:
    engine = Engine(weights)
    assert stale_weights(engine, weights) == {}
    engine.language_model.model.mlp.gate_up_proj.weight.data[3:] *= 0.5
    found = stale_weights(engine, weights)
    assert list(found) == [UP]
    assert "language_model.model.mlp.gate_up_proj computes with other weights" in found[UP]


def test_a_stale_vector_is_named_as_it_was_sent(weights: dict[str, torch.Tensor]) -> None:
    engine = Engine(weights)
    engine.language_model.model.norm.weight.data += 1.0
    assert list(stale_weights(engine, weights)) == [NORM]


def test_weights_in_use_are_shown_under_the_names_that_were_sent(
    weights: dict[str, torch.Tensor],
) -> None:
    blocks = live_blocks(Engine(weights), weights)
    assert blocks.keys() == weights.keys()
    for name, weight in weights.items():
        assert join_blocks([blocks[name]]) == fingerprint(weight.reshape(-1))
