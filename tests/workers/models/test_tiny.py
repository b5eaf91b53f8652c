"""The tiny model: the same folder from the same seed, loadable by name, one character one token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from workers.models.cache import cache_dir
from workers.models.tiny import build_tiny, warm_start, warm_start_on
from workers.models.tokenizer import VOCABULARY
from workers.tasks.digits import build_digits
from workers.tasks.reasoning import reasoning
from workers.tasks.tables import write_parquet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("models") / "tiny")


def test_parameter_count(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    # 2 layers x (4 x 128 x 128 attention + 3 x 128 x 352 MLP + 2 x 128 norms) + 128 + 64 x 128
    assert sum(p.numel() for p in model.parameters()) == 410_240
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_untied_and_qwen3(tmp_path: Path) -> None:
    untied = AutoModelForCausalLM.from_pretrained(
        build_tiny(tmp_path / "untied", tie_word_embeddings=False)
    )
    assert sum(p.numel() for p in untied.parameters()) == 410_240 + 64 * 128
    qwen3 = AutoModelForCausalLM.from_pretrained(
        build_tiny(tmp_path / "qwen3", architecture="qwen3")
    )
    # two head-size norms (queries and keys) a layer
    assert sum(p.numel() for p in qwen3.parameters()) == 410_240 + 2 * 2 * 32
    assert qwen3.config.model_type == "qwen3"


def test_deterministic_in_the_seed(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)
    expected_next = torch.rand(1)
    torch.manual_seed(123)
    same = load_file(build_tiny(tmp_path / "same") / "model.safetensors")
    assert torch.equal(torch.rand(1), expected_next)  # the global generator was left alone
    other = load_file(build_tiny(tmp_path / "other", seed=1) / "model.safetensors")
    first = load_file(folder / "model.safetensors")
    assert all(torch.equal(first[name], same[name]) for name in first)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(first[name], other[name])


def test_building_again_skips(folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert build_tiny(folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # nothing left beside it


def test_another_recipe_at_the_same_path_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"'seed': 7.*another path"):
        build_tiny(folder, seed=7)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"head_size": 16}, "head_size must be at least 32"),
        ({"hidden_size": 100}, "hidden_size 100 is not a multiple of head_size 32"),
        ({"num_kv_heads": 3}, "num_kv_heads 3 does not divide the 4 query heads"),
        ({"architecture": "gpt9"}, "gpt9"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
    ],
)
def test_bad_sizes(tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tiny(tmp_path / "bad", **sizes)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_round_trip(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "12+34=46\nsort 3 1 2: 1 2 3"
    ids = tokenizer.encode(text)
    assert ids == [VOCABULARY.index(character) for character in text]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert tokenizer.encode("Ab\u00e9") == [14, 15, tokenizer.unk_token_id]  # lower-cased, unknown
    assert len(tokenizer) == len(VOCABULARY) == 64
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 2, 3)


def test_chat_template(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "1+1="}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.apply_chat_template(messages, return_dict=True, add_generation_prompt=True)
    # user 4 + newline + 1+1= 4 + end + newline, then start + assistant 9 + newline, 1 start first
    assert len(ids["input_ids"]) == 1 + 4 + 1 + 4 + 1 + 1 + 1 + 9 + 1
    assert ids["input_ids"][0] == tokenizer.bos_token_id


def test_warm_start_teaches_and_leaves_the_source(folder: Path, tmp_path: Path) -> None:
    examples = [(f"{digit}=", str(digit)) for digit in range(10)]
    source = load_file(folder / "model.safetensors")
    warm = warm_start(
        folder, examples, num_batches=60, batch_size=20, lr=3e-3, output=tmp_path / "warm"
    )
    tokenizer = AutoTokenizer.from_pretrained(warm)
    model = AutoModelForCausalLM.from_pretrained(warm)
    inputs = tokenizer([prompt for prompt, _ in examples], return_tensors="pt")
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    answers = tokenizer.batch_decode(generated[:, 2:], skip_special_tokens=True)
    assert answers == [answer for _, answer in examples]  # and each was closed by the end token
    assert torch.equal(
        source["model.embed_tokens.weight"],
        load_file(folder / "model.safetensors")["model.embed_tokens.weight"],
    )


def test_warm_start_on_a_task_folder(folder: Path, tmp_path: Path) -> None:
    data = build_digits(tmp_path, task="copy", length=2, num_train=20, num_eval=2)
    model = build_tiny(tmp_path / "tiny")
    warm = warm_start_on(model, data, num_batches=2, batch_size=4)
    assert warm == warm_start_on(model, data, num_batches=2, batch_size=4)
    assert warm != warm_start_on(model, data, num_batches=1, batch_size=4)
    assert warm.parent == model.parent
    chat = reasoning(datasets={"coin_flip": {}}, num_train=2, num_eval=1, style="chat").train
    write_parquet(chat, tmp_path / "chat" / "train.parquet")
    with pytest.raises(ValueError, match="plain-text prompts"):
        warm_start_on(model, tmp_path / "chat", num_batches=1)


def test_warm_start_bad_input(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="call build_tiny first"):
        warm_start(tmp_path, [("1=", "1")], num_batches=1)
    with pytest.raises(ValueError, match="got 0 examples"):
        warm_start(folder, [], num_batches=1)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BALLAST_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path.home() / ".cache/ballast/models"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/ballast/models")
    monkeypatch.setenv("BALLAST_CACHE", "/b")
    assert cache_dir() == Path("/b/models")
