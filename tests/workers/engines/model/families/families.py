"""Tiny configurations of model families, made by transformers itself.

A family takes from `SHAPE` and `EXPERTS` the settings that it has; `OWN` are what it needs besides.
Weights are large enough for every mistake to show in the log-probs.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "sliding_window": 5,  # shorter than the sequences of the self-test
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
}
SCALED = {"logits_scaling": 4.0}
OWN: dict[str, dict[str, Any]] = {
    "axk1": LATENT,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "glm4_moe_lite": LATENT,
    "granite": SCALED,
    "granitemoe": SCALED,
    "granitemoeshared": SCALED,
    "hyperclovax": SCALED,
    "minicpm3": LATENT,
    "mixtral": {"router_jitter_noise": 0.3},
    "phimoe": {"sliding_window": None, "router_jitter_noise": 0.3, "input_jitter_noise": 0.3},
    "youtu": LATENT,
}
WITHOUT = {"codegen": {"head_dim"}, "falcon": {"head_dim"}, "gptj": {"head_dim"}}


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    """A configuration of the family of two layers, 32 wide."""
    known = AutoConfig.for_model(family)
    taken = {
        name: value
        for name, value in {**SHAPE, **EXPERTS}.items()
        if hasattr(known, name) and name not in WITHOUT.get(family, ())
    }
    return AutoConfig.for_model(family, **{**taken, **OWN.get(family, {}), **changes})


def tiny_model(family: str, **changes: Any) -> PreTrainedModel:
    """A model of the family with normal weights of deviation 0.3."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()
