"""vLLM's Mixtral finds a parameter for every tensor of transformers' Mixtral."""

import pytest
from vllm.model_executor.models.mixtral import MixtralForCausalLM, MixtralModel
from vllm.model_executor.models.utils import WeightsMapper

from workers.engines.vllm.extensions.mixtral_names import accept_published_names


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("mlp.gate.weight", "block_sparse_moe.gate.weight"),
        ("mlp.experts.gate_up_proj", "block_sparse_moe.experts.w13"),
        ("mlp.experts.down_proj", "block_sparse_moe.experts.w2"),
        ("self_attn.o_proj.weight", "self_attn.o_proj.weight"),
        ("self_attn.q_proj.weight", "self_attn.qkv_proj.weight"),
        # as files call them
        ("block_sparse_moe.gate.weight", "block_sparse_moe.gate.weight"),
        ("block_sparse_moe.experts.3.w1.weight", "block_sparse_moe.experts.3.w1.weight"),
        ("block_sparse_moe.experts.3.down_proj.weight", "block_sparse_moe.experts.3.w2.weight"),
    ],
)
def test_names_of_learner_and_files_are_taken(monkeypatch, name, taken):
    for model_class in (MixtralModel, MixtralForCausalLM):
        own = model_class.hf_to_vllm_mapper
        monkeypatch.setattr(model_class, "hf_to_vllm_mapper", own)  # put back in the end
    for _ in range(2):  # harmless when done twice
        accept_published_names(WeightsMapper, MixtralModel, MixtralForCausalLM)
    for model_class in (MixtralModel, MixtralForCausalLM):
        found = model_class.hf_to_vllm_mapper.map_name(f"model.layers.1.{name}")
        assert found == f"model.layers.1.{taken}"
