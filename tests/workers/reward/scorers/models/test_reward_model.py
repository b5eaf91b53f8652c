"""Rewards of a model's head: those of a plain loop, in batches of any prompts, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
)

from workers.models.tokenizer import VOCABULARY, build_tokenizer
from workers.reward.base import RewardSample, score_group, takes_batch
from workers.reward.scorers.by_column import ByColumn
from workers.reward.scorers.exact import Exact
from workers.reward.scorers.models.reward_model import RewardModel, micro_batches, padding_for
from workers.reward.scorers.weighted import Weighted

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS: dict[str, Callable[..., Any]] = {
    "llama": lambda **more: LlamaConfig(
        **SMALL, intermediate_size=48, num_key_value_heads=2, max_position_embeddings=128, **more
    ),
    "gpt2": lambda **more: GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **more),
    "bert": lambda **more: BertConfig(
        **SMALL, intermediate_size=48, max_position_embeddings=128, **more
    ),
    "roberta": lambda **more: RobertaConfig(
        **SMALL, intermediate_size=48, max_position_embeddings=130, **more
    ),
}
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2+3="}]
SAMPLES = [
    RewardSample(prompt="2+3=", response="5", ground_truth="5"),
    RewardSample(prompt="2+3=", response="it is five, i think", ground_truth="5"),
    RewardSample(prompt="2+3=", response="5", ground_truth="5", messages=tuple(CHAT)),
    RewardSample(prompt="a longer question than the others", response="", ground_truth="5"),
]


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a model with random weights, large enough to matter, and the character tokenizer."""

    def make(kind: str = "llama", **more: Any) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        tokenizer = build_tokenizer(model_max_length=128)
        config = KINDS[kind](
            **{"vocab_size": len(VOCABULARY), "num_labels": 1, "pad_token_id": 0} | more
        )
        model = AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def llama(save: Callable[..., Path]) -> Path:
    return save()


def plain_loop(folder: Path, samples: list[RewardSample], label: int = 0) -> list[float]:
    """Score one conversation after the other, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rewards = []
    for sample in samples:
        asked = list(sample.messages) or [{"role": "user", "content": sample.prompt}]
        chat = [*asked, {"role": "assistant", "content": sample.response}]
        ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
        with torch.no_grad():
            rewards.append(model(torch.tensor([ids])).logits[0, label].item())
    return rewards


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("token_budget", [64, 8192])
def test_scores_are_those_of_a_plain_loop(
    save: Callable[..., Path], kind: str, token_budget: int
) -> None:
    folder = save(kind)
    results = score_group(RewardModel(path=str(folder), token_budget=token_budget), SAMPLES)
    wanted = plain_loop(folder, SAMPLES)
    assert [result.reward for result in results] == pytest.approx(wanted, abs=1e-6)
    assert max(wanted) - min(wanted) > 1e-3


def test_padding_that_ends_a_row_is_not_taken_for_padding(save: Callable[..., Path]) -> None:
    """The template ends with a line break; a model that pads with line breaks is scored right."""
    folder = save("llama", pad_token_id=VOCABULARY.index("\n"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "\n"
    tokenizer.save_pretrained(folder)
    results = score_group(RewardModel(path=str(folder)), SAMPLES)
    model = RewardModel(path=str(folder))
    wanted = [score_group(model, [one])[0].reward for one in SAMPLES]
    assert [result.reward for result in results] == pytest.approx(wanted, abs=1e-6)
    assert padding_for([[5, 0], [3, 1]], own=1) == 2
    assert padding_for([[5, 0], [3, 1]], own=9) == 9


def test_the_named_output_of_several_is_the_reward(save: Callable[..., Path]) -> None:
    folder = save("llama", num_labels=3)
    with pytest.raises(ValueError, match="its head has 3 outputs .* reward.scorer.label"):
        RewardModel(path=str(folder)).check()
    with pytest.raises(ValueError, match="reward.scorer.label=3: the head of"):
        RewardModel(path=str(folder), label=3).check()
    results = score_group(RewardModel(path=str(folder), label=2), SAMPLES)
    wanted = plain_loop(folder, SAMPLES, label=2)
    assert [result.reward for result in results] == pytest.approx(wanted, abs=1e-6)


def test_what_is_too_long_or_refused_by_the_template_fails_alone(llama: Path) -> None:
    long = RewardSample(prompt="2+3=", response="5" * 200)
    odd = RewardSample(prompt="", response="5", messages=({"role": "user"},))
    template = "{% for m in messages %}{{ m.role + m['content'] }}{% endfor %}"
    scorer = RewardModel(path=str(llama), chat_template=template)
    results = score_group(scorer, [SAMPLES[0], long, odd])
    assert results[0].outcome == "scored"
    assert results[1].outcome == "failed:ValueError: conversation of 217 tokens, limit 128"
    assert results[2].outcome.startswith("failed:ValueError: not rendered for the reward model:")


def test_a_model_that_cannot_score_is_refused_by_name(llama: Path, tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(tmp_path / "lm")
    build_tokenizer(model_max_length=128).save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match="head ForSequenceClassification, this one is LlamaForCau"):
        RewardModel(path=str(tmp_path / "lm")).check()
    with pytest.raises(ValueError, match="no tokenizer"):
        RewardModel(path=str(tmp_path)).check()
    shutil.copytree(llama, tmp_path / "mute")
    (tmp_path / "mute" / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="mute: its tokenizer has no chat template; give one with"):
        RewardModel(path=str(tmp_path / "mute")).check()
    shutil.copytree(tmp_path / "lm", tmp_path / "headless")
    config = json.loads((llama / "config.json").read_text())
    (tmp_path / "headless" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"headless lacks the weights .*score.weight"):
        RewardModel(path=str(tmp_path / "headless")).prepare()
    RewardModel(path=str(llama)).check()


def test_rows_are_divided_by_their_padded_tokens() -> None:
    rows = {0: [1] * 5, 1: [1] * 2, 2: [1] * 2, 3: [1] * 30}
    assert list(micro_batches(rows, token_budget=8)) == [[1, 2], [0], [3]]
    assert list(micro_batches(rows, token_budget=1000)) == [[1, 2, 0, 3]]
    assert list(micro_batches({}, token_budget=8)) == []


def test_a_reward_model_goes_into_a_weighted_sum(llama: Path) -> None:
    """0.5 times the logit, and 2 for the exact answer."""
    scorer = Weighted(
        scorers={"model": RewardModel(path=str(llama)), "exact": Exact()},
        weights={"model": 0.5, "exact": 2.0},
    )
    assert takes_batch(scorer)
    assert scorer.check is not None
    scorer.check()
    logits = plain_loop(llama, SAMPLES)
    wanted = [
        0.5 * logit + 2.0 * (sample.response == "5")
        for logit, sample in zip(logits, SAMPLES, strict=True)
    ]
    results = score_group(scorer, SAMPLES)
    assert [result.reward for result in results] == pytest.approx(wanted, abs=1e-6)


def test_a_row_may_choose_a_reward_model(llama: Path) -> None:
    chosen = ByColumn(scorers={"chat": RewardModel(path=str(llama))}, other=Exact())
    assert not takes_batch(chosen)
    assert chosen.check is not None
    rows = [replace(SAMPLES[0], columns={"dataset": "chat"}), SAMPLES[0]]
    results = score_group(chosen, rows)
    wanted = [plain_loop(llama, SAMPLES[:1])[0], 1.0]
    assert [result.reward for result in results] == pytest.approx(wanted, abs=1e-6)
    too_long = replace(rows[0], response="5" * 200)
    (failed,) = score_group(chosen, [too_long])
    assert "conversation of" in failed.outcome
