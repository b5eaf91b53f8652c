"""Ids beyond the tokenizer: left out of training and scoring, counted where a prompt is scored."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "zero"))
import zero_matrix

from workers.data.packing import pack, pack_sequences
from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings
from workers.models.tiny import build_tiny
from workers.models.vocabulary import known_ids, vocab_size

TOKENS = [5, 9, 3, 17, 4, 8]


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of 128 rows in its head over a tokenizer of fewer ids."""
    folder = build_tiny(tmp_path_factory.mktemp("padded") / "tiny", hidden_size=64)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(128, mean_resizing=False)
    with torch.no_grad():
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.02)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits_of(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return model(torch.tensor([TOKENS])).logits[0, :-1]  # [5, 128]


def picked(log_p: torch.Tensor) -> torch.Tensor:
    return log_p.gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0]


def test_the_number_of_ids_is_read_where_the_head_has_more(padded: Path, tmp_path: Path) -> None:
    plain = build_tiny(tmp_path / "plain", hidden_size=64)
    assert known_ids(plain) is None
    assert vocab_size(padded) == 128
    assert known_ids(padded) == vocab_size(plain)
    (plain / "tokenizer.json").unlink()
    assert known_ids(plain) is None


@pytest.mark.parametrize("stage", [0, 3])
def test_logprobs_are_those_of_the_ids_that_are_left(padded: Path, stage: int) -> None:
    known = known_ids(padded)
    engine = PolicyEngine(ZeroSettings(model=str(padded), zero_stage=stage, known_ids=known))
    batch = pack_sequences([TOKENS])
    scored = engine.compute_logprobs([batch], temperature=0.7, entropy=True)
    prompt = engine.probe([TOKENS])[0]
    engine.close()
    logits = logits_of(padded)
    kept = (logits[:, :known] / 0.7).log_softmax(-1)
    want, entropy = picked(kept), -(kept.exp() * kept).sum(-1)
    every = picked(logits.log_softmax(-1))
    torch.testing.assert_close(torch.from_numpy(scored.logprobs[0][1:]), want, atol=1e-5, rtol=0)
    assert scored.entropies is not None
    torch.testing.assert_close(
        torch.from_numpy(scored.entropies[0][1:]), entropy, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(torch.from_numpy(prompt[1:]), every, atol=1e-5, rtol=0)
    assert float((picked((logits / 0.7).log_softmax(-1)) - want).abs().max()) > 0.1


def test_rows_that_no_text_has_are_not_trained(padded: Path) -> None:
    known = known_ids(padded)
    optimizer = OptimizerSettings(name="sgd", lr=1.0)
    engine = PolicyEngine(ZeroSettings(model=str(padded), optimizer=optimizer, known_ids=known))
    before = engine.hf_model.get_input_embeddings().weight.detach().clone()  # tied to the head
    batch = pack(zero_matrix.rows(), range(6), weights=zero_matrix.weights())
    engine.train([[batch]], zero_matrix.TwoTermLoss(), temperature=1.0)
    after = engine.hf_model.get_input_embeddings().weight.detach()
    assert torch.equal(after[known:], before[known:])
    assert not torch.equal(after[:known], before[:known])
    engine.close()
