"""Tiny models on which engines are held against plain autograd."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def save_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a Llama of 2 layers, hidden 32, vocabulary 20, with weights large enough to matter."""

    def save(**changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("model")
        sizes = {
            "vocab_size": 20,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        }
        torch.manual_seed(0)
        network = LlamaForCausalLM(LlamaConfig(**sizes | changes))
        for parameter in network.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        network.save_pretrained(folder)
        (folder / "tokenizer_config.json").write_text("{}")
        return folder

    return save


@pytest.fixture(scope="module")
def model(save_llama: Callable[..., Path]) -> Path:
    """The tied one."""
    return save_llama()
