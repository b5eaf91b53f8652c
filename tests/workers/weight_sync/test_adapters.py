"""Adapters that vLLM is not given."""

import pytest
import torch

from workers.weight_sync.adapters import apply_adapter


def test_an_adapter_of_experts_is_refused_by_its_name():
    name = "base_model.model.model.layers.0.mlp.experts.down_proj.lora_A.weight"
    tensors = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 8),
        name: torch.zeros(2, 4, 8),
    }
    with pytest.raises(ValueError, match=rf"{name} is an adapter of experts.*publish=merged"):
        apply_adapter(None, tensors, 1)
