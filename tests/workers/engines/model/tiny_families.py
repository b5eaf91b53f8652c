"""Tiny models of four families, and what each computes of one sequence by itself."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=False),
    "gemma2": Gemma2Config(
        **SHAPE,
        sliding_window=7,
        attn_logit_softcapping=20.0,
        final_logit_softcapping=10.0,
        query_pre_attn_scalar=8,
    ),
    "gemma3": Gemma3TextConfig(
        **SHAPE,
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
    ),
}
TEMPERATURE = 0.7


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        copy.deepcopy(CONFIGS[name]), attn_implementation="eager"
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def alone(model: torch.nn.Module, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies [L] of one unpacked sequence by eager attention, plain logits."""
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0].float() / TEMPERATURE
    log_p = logits.log_softmax(-1)  # [L, V]
    picked = log_p[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)[:-1]
    zero = picked.new_zeros(1)
    return torch.cat([zero, picked]), torch.cat([zero, entropy])
