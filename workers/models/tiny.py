"""Tiny causal language model with random weights, saved as an ordinary Hugging Face folder.

It is the real architecture in small (Llama, Qwen3, or the mixtures of experts Qwen3-MoE and
Mixtral, loadable by transformers, vLLM and DeepSpeed), not a test double. `warm_start` optionally
trains it a little on a task by plain supervised learning, for tasks whose reward random weights
never meet. Data flows from a handful of sizes and a seed to a folder, or from a folder and examples
to a second folder. Runs in the driver, before anything starts, and in `ballast model`. Trains by no
reward.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from workers.models.cache import (
    RECIPE_FILE,
    build_once,
    default_path,
    recipe_hash,
    without_progress_bars,
)
from workers.models.tokenizer import VOCABULARY, build_tokenizer

MIXTURES = ("qwen3_moe", "mixtral")
ARCHITECTURES = ("llama", "qwen3", *MIXTURES)
MIN_HEAD_SIZE = 32  # the smallest that vLLM's CPU attention accepts


def build_tiny(
    path: str | Path | None = None,
    *,
    architecture: str = "llama",
    hidden_size: int = 128,
    num_layers: int = 2,
    head_size: int = 32,
    num_kv_heads: int | None = None,
    intermediate_size: int = 352,
    max_position_embeddings: int = 512,
    tie_word_embeddings: bool = True,
    num_experts: int = 4,
    experts_per_token: int = 2,
    seed: int = 0,
) -> Path:
    """Build a float32 model and its tokenizer at `path`; do nothing if it is already there.

    The defaults give 410,240 parameters (418,432 with untied embeddings). The weights depend on the
    arguments and the seed only.

    Args:
        path: the folder to write, one in the cache named after the arguments if None.
        architecture: "llama", "qwen3" (adds normalised queries and keys), "qwen3_moe" or "mixtral".
        hidden_size: width; a multiple of `head_size`.
        num_layers: decoder layers.
        head_size: at least 32, which vLLM needs.
        num_kv_heads: key/value heads, None for as many as query heads.
        intermediate_size: width of the gated MLP, or of each expert; of an expert a multiple of 32,
            which vLLM's CPU kernel needs.
        max_position_embeddings: longest sequence in tokens, prompt and response together.
        tie_word_embeddings: True where the head shares the embedding matrix.
        num_experts: of a mixture; other architectures have none.
        experts_per_token: of them that each token passes.
        seed: of the random weights; torch's global generator is left as it was.

    Returns:
        The folder, absolute.

    Raises:
        ValueError: sizes that do not fit together, or `path` holds a model of another recipe.
    """
    recipe: dict[str, Any] = {
        "model": "tiny",
        "architecture": architecture,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "head_size": head_size,
        "num_kv_heads": num_kv_heads or hidden_size // max(head_size, 1),
        "intermediate_size": intermediate_size,
        "max_position_embeddings": max_position_embeddings,
        "tie_word_embeddings": tie_word_embeddings,
        "vocabulary": "".join(VOCABULARY),
        "seed": seed,
    }
    if architecture in MIXTURES:
        recipe |= {"num_experts": num_experts, "experts_per_token": experts_per_token}
    _validate(recipe)

    def write(folder: Path) -> None:
        tokenizer = build_tokenizer(model_max_length=max_position_embeddings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _random_model(recipe, tokenizer)
        _save(model, tokenizer, folder)

    return build_once(path or default_path(recipe, f"tiny-{architecture}"), recipe, write)


def warm_start(
    path: str | Path,
    examples: Sequence[tuple[str, str]],
    *,
    num_batches: int,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    output: str | Path | None = None,
) -> Path:
    """Train a copy of a model folder on (prompt, answer) texts, answers closed by the end token.

    Plain AdamW on the mean negative log-likelihood of the answer tokens. The folder at `path` is
    left as it is; an equal call finds its result and returns at once.

    Args:
        path: a folder written by `build_tiny`.
        examples: (prompt, answer) pairs, drawn with replacement.
        num_batches: optimizer steps; fewer leave more for reinforcement learning to do.
        batch_size: examples per step.
        lr: learning rate.
        seed: of the order of the examples.
        output: the folder to write, `<path>-warm-<hash of the arguments>` if None.

    Returns:
        The output folder, absolute.

    Raises:
        ValueError: no examples, a count below one, no model at `path`, another recipe at `output`.
    """
    source = Path(path).expanduser().absolute()
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} holds no model (no config.json): call build_tiny first")
    if not examples or num_batches < 1 or batch_size < 1:
        raise ValueError(
            f"warm_start needs examples and counts of at least 1, got {len(examples)} examples, "
            f"num_batches={num_batches}, batch_size={batch_size}"
        )
    digest = hashlib.sha256(json.dumps([list(pair) for pair in examples]).encode()).hexdigest()
    base = source / RECIPE_FILE
    recipe = {
        "model": "warm_start",
        "base": json.loads(base.read_text()) if base.is_file() else str(source),
        "examples_sha256": digest,
        "num_batches": num_batches,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
    }

    def write(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(source)
        with without_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        rows = [_example_tokens(tokenizer, prompt, answer) for prompt, answer in examples]
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
        model.train()
        for _ in range(num_batches):
            chosen = torch.randint(len(rows), (batch_size,), generator=generator).tolist()
            inputs, labels = _pad([rows[i] for i in chosen], int(tokenizer.pad_token_id))
            loss = model(input_ids=inputs, labels=labels, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        _save(model, tokenizer, folder)

    beside = source.with_name(f"{source.name}-warm-{recipe_hash(recipe)}")
    return build_once(output or beside, recipe, write)


def warm_start_on(
    model: str | Path, data: str | Path, *, num_batches: int, **settings: Any
) -> Path:
    """Warm-start a model folder on `train.parquet` of a task folder with plain-text prompts.

    For configuration, where both folders may be built by nested `_target_` nodes.

    Args:
        model: as `path` of `warm_start`.
        data: a folder that a `workers.tasks` builder returned.
        num_batches: as for `warm_start`.
        settings: its other keyword arguments.
    """
    columns = ["prompt", "ground_truth"]
    table = pq.read_table(Path(data) / "train.parquet", columns=columns)
    prompts, answers = (table[name].to_pylist() for name in columns)
    if prompts and not isinstance(prompts[0], str):
        raise ValueError(f"{data} holds chat messages: a warm start needs plain-text prompts")
    pairs = list(zip(prompts, answers, strict=True))
    return warm_start(model, pairs, num_batches=num_batches, **settings)


def _validate(recipe: dict[str, Any]) -> None:
    if recipe["architecture"] not in ARCHITECTURES:
        raise ValueError(
            f"architecture must be one of {ARCHITECTURES}, got {recipe['architecture']!r}"
        )
    for name in ("hidden_size", "num_layers", "intermediate_size", "max_position_embeddings"):
        if recipe[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {recipe[name]}")
    chosen, experts = recipe.get("experts_per_token", 1), recipe.get("num_experts", 1)
    if not 1 <= chosen <= experts:
        raise ValueError(f"experts_per_token={chosen} must be from 1 to num_experts={experts}")
    if recipe["head_size"] < MIN_HEAD_SIZE:
        raise ValueError(
            f"head_size must be at least {MIN_HEAD_SIZE} (vLLM refuses less), got "
            f"{recipe['head_size']}"
        )
    if recipe["hidden_size"] % recipe["head_size"]:
        raise ValueError(
            f"hidden_size {recipe['hidden_size']} is not a multiple of head_size "
            f"{recipe['head_size']}"
        )
    num_heads = recipe["hidden_size"] // recipe["head_size"]
    if num_heads % recipe["num_kv_heads"]:
        raise ValueError(
            f"num_kv_heads {recipe['num_kv_heads']} does not divide the {num_heads} query heads"
        )


def _random_model(recipe: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    sizes: dict[str, Any] = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": recipe["hidden_size"],
        "intermediate_size": recipe["intermediate_size"],
        "num_hidden_layers": recipe["num_layers"],
        "num_attention_heads": recipe["hidden_size"] // recipe["head_size"],
        "num_key_value_heads": recipe["num_kv_heads"],
        "head_dim": recipe["head_size"],
        "max_position_embeddings": recipe["max_position_embeddings"],
        "tie_word_embeddings": recipe["tie_word_embeddings"],
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    chosen = {"num_experts_per_tok": recipe.get("experts_per_token")}
    if recipe["architecture"] == "qwen3_moe":
        widths = {"moe_intermediate_size": sizes["intermediate_size"], "norm_topk_prob": True}
        config = Qwen3MoeConfig(**sizes, **widths, **chosen, num_experts=recipe["num_experts"])
        return Qwen3MoeForCausalLM(config).float()
    if recipe["architecture"] == "mixtral":
        config = MixtralConfig(**sizes, **chosen, num_local_experts=recipe["num_experts"])
        return MixtralForCausalLM(config).float()
    if recipe["architecture"] == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**sizes)).float()
    return LlamaForCausalLM(LlamaConfig(**sizes)).float()


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    with without_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _example_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str
) -> tuple[list[int], list[int]]:
    """Return (tokens, labels) of one example; labels are -100 on the prompt."""
    prompt_ids = list(tokenizer.encode(prompt, add_special_tokens=False))
    answer_ids = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    return prompt_ids + answer_ids, [-100] * len(prompt_ids) + answer_ids


def _pad(rows: Sequence[tuple[list[int], list[int]]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad at the right, where causal attention cannot see it: tokens [B, T], labels [B, T]."""
    longest = max(len(tokens) for tokens, _ in rows)
    inputs = torch.tensor([t + [pad_id] * (longest - len(t)) for t, _ in rows])  # [B, T]
    labels = torch.tensor([x + [-100] * (longest - len(x)) for _, x in rows])  # [B, T]
    return inputs, labels
