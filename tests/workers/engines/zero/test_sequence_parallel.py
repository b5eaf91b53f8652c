"""Ranks that share their micro-batches compute what one rank computes, and half the tokens each."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import sequence_parallel_rank  # noqa: E402
from rank_processes import run_ranks  # noqa: E402

from workers.engines.model.heads import check_heads  # noqa: E402
from workers.engines.zero.policy_engine import PolicyEngine  # noqa: E402
from workers.engines.zero.process_group import ProcessGroupSettings  # noqa: E402
from workers.engines.zero.settings import ZeroSettings  # noqa: E402

SHAPE = {
    "vocab_size": 20,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
}
#: Two ranks give each rank one key-value head of Llama's, and a copy of Qwen3's only one.
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE, num_key_value_heads=2)),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(**SHAPE, num_key_value_heads=1, tie_word_embeddings=True),
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of both models, with weights large enough to matter."""
    folders = {}
    for name, (kind, config) in MODELS.items():
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        network = kind(config)
        for parameter in network.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        network.save_pretrained(folder)
        folders[name] = str(folder)
    return folders


def found_by(tmp_path: Path, world_size: int, jobs: list[dict]) -> list[list[dict]]:
    """What every rank found, `[rank][job]`."""
    out = run_ranks(sequence_parallel_rank.__file__, tmp_path, world_size, jobs=jobs)
    return [torch.load(f"{out}.{rank}") for rank in range(world_size)]


def alone(model: str) -> dict[str, dict[str, torch.Tensor]]:
    """What one rank finds, replicated, without sequence parallelism."""
    job = {"model": model, "stages": [0], "sequence_parallel_size": 1}
    return sequence_parallel_rank.results(job, ProcessGroupSettings())


def assert_equal(case: str, got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    """Gradients to 1e-5 relative to their norm, everything else to 1e-5."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        if name.startswith("gradient/"):
            assert value.norm() > 0, f"{case} {name}: nothing to compare"
            relative = (got[name] - value).norm() / value.norm()
            assert relative < 1e-5, f"{case} {name}: {relative:.1e}"
        elif name != "largest":
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5, msg=case + name)


def test_two_ranks_that_share_equal_one(models: dict[str, str], tmp_path: Path) -> None:
    stages = {"llama": [0, 3], "qwen3": [3]}
    jobs = [
        {"model": folder, "stages": stages[name], "sequence_parallel_size": 2}
        for name, folder in models.items()
    ]
    ranks = found_by(tmp_path, 2, jobs)
    longest = max(batch.num_tokens for batch in sequence_parallel_rank.micro_batches(0, 1))
    assert longest % 2 == 1
    for number, (name, folder) in enumerate(models.items()):
        want = alone(folder)
        assert sum(len(found[number]) for found in ranks) == 2 * len(stages[name]) * len(want)
        for rank, found in enumerate(ranks):
            for case, got in found[number].items():
                whole = want[case.replace("3-", "0-")]
                assert_equal(f"{name} rank {rank} {case} ", got, whole)
                assert int(whole["largest"]) == longest
                assert int(got["largest"]) == (longest + 1) // 2


@pytest.mark.slow
def test_groups_of_ranks_that_share_train_on_different_rows(
    models: dict[str, str], tmp_path: Path
) -> None:
    """Four ranks: two groups of two, then one group of four on two key-value heads."""
    jobs = [
        {"model": models["llama"], "stages": [0, 1, 2, 3], "sequence_parallel_size": size}
        for size in (2, 4)
    ]
    ranks = found_by(tmp_path, 4, jobs)
    want = alone(models["llama"])
    for rank, found in enumerate(ranks):
        for size, cases in zip((2, 4), found, strict=True):
            for case, got in cases.items():
                whole = dict(want[f"0-{case.split('-')[1]}"])
                if size == 2:  # each group scores its own rows
                    for name in ("logprobs", "entropies"):
                        assert got[name].shape[0] < whole[name].shape[0]
                        whole[name] = got[name]
                assert_equal(f"rank {rank} of groups of {size} {case} ", got, whole)


def test_heads_that_ranks_cannot_share_are_refused() -> None:
    check_heads(32, 8, 16)  # two ranks for each key-value head
    check_heads(9, 3, 3)
    with pytest.raises(ValueError, match=r"=2 cannot divide 9 .*3 key-value.* one of 1, 3, 9"):
        check_heads(9, 3, 2)
    with pytest.raises(ValueError, match=r"=4 cannot divide 12 .* choose one of 1, 3, 6, 12"):
        check_heads(12, 3, 4)


def test_shared_micro_batches_need_ranks_and_our_attention(models: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="sequence_parallel_size=0: give 1 or more"):
        ZeroSettings(model=models["llama"], sequence_parallel_size=0)
    with pytest.raises(ValueError, match="need attention varlen_sdpa"):
        ZeroSettings(model=models["llama"], sequence_parallel_size=2, attention="flash_attention_2")
    with pytest.raises(ValueError, match="=2 does not divide 1 ranks"):
        PolicyEngine(ZeroSettings(model=models["llama"], sequence_parallel_size=2))
