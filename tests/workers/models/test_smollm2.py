"""SmolLM2 from the Python package: converted once, loads offline, and can add with two examples."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workers.models import smollm2


@pytest.fixture(scope="module")
def folder() -> Path:
    return smollm2.build_smollm2()  # in the cache, where the quickstart finds it too


def test_adds_with_two_examples(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    prompts = [f"2+3=5\n4+1=5\n{a}+{b}=" for a, b in [(1, 1), (1, 2), (3, 1), (2, 2), (5, 0)]]
    inputs = tokenizer(prompts, return_tensors="pt")
    assert inputs["input_ids"].shape == (5, 16)  # every character is one token
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]  # [B, V]
    probabilities = logits.float().softmax(-1)
    digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
    assert probabilities[:, digits].sum(-1).min() > 0.8
    answers = tokenizer.convert_tokens_to_ids(list("23445"))
    assert probabilities[torch.arange(5), answers].mean() > 0.15


def test_tokenizer_and_template(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (
        tokenizer.decode(tokenizer.encode("Hello world, 12+34=46\n")) == "Hello world, 12+34=46\n"
    )
    assert (tokenizer.eos_token, tokenizer.model_max_length) == ("<|im_end|>", 8192)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_building_again_skips(folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2.build_smollm2() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-distribution-9")
    with pytest.raises(ModuleNotFoundError, match="pip install no-such-distribution-9"):
        smollm2.build_smollm2(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.distribution("no-such-distribution-9")
