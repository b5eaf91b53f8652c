"""The device of these tests, small models of several families, and memory as CUDA counts it.

    python -m pytest tests/gpu -m gpu -s                      on one GPU with torch and transformers
    BALLAST_GPU_TESTS_ON=cpu python -m pytest tests/gpu       the same arithmetic without one

vLLM, Ray and DeepSpeed may be missing: a part that needs one is skipped and says so.
"""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

SHAPE = {
    "vocab_size": 211,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {
    "sliding_window": 37,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 32,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=False),
    "gemma2": Gemma2Config(
        **SHAPE, **WINDOW, attn_logit_softcapping=20.0, final_logit_softcapping=10.0
    ),
    "gemma3": Gemma3TextConfig(**SHAPE, **WINDOW),
}


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where everything runs."""
    name = os.environ.get("BALLAST_GPU_TESTS_ON", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device; BALLAST_GPU_TESTS_ON=cpu runs the arithmetic without one")
    return torch.device(name)


@pytest.fixture(params=sorted(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    """A kind of model."""
    return str(request.param)


@pytest.fixture
def build(device: torch.device) -> Callable[..., PreTrainedModel]:
    """Builds a model of a family with eager attention and weights large enough to matter."""

    def model_of(family: str, std: float = 0.15) -> PreTrainedModel:
        torch.manual_seed(0)
        config = copy.deepcopy(CONFIGS[family])
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=std)
        return model.eval().to(device)

    return model_of


@pytest.fixture
def sequences() -> list[list[int]]:
    """Lengths on either side of a window, of a block and of a kernel's tile; one token too."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, 211, size=length).tolist() for length in (3, 300, 9, 1, 131, 299)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved Llama of 2 layers."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["llama"]))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path / "model"
    model.save_pretrained(path)
    (path / "tokenizer_config.json").write_text("{}")
    return path


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a figure past pytest's capture: the log of a run is what is kept of a lent device."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n    {text}", end="", flush=True)

    return line


@pytest.fixture
def peak(device: torch.device) -> Callable[[Callable[[], Any]], int]:
    """Bytes that a call takes above what was allocated before it; 0 on CPU."""

    def measured(call: Callable[[], Any]) -> int:
        if device.type != "cuda":
            call()
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    return measured
