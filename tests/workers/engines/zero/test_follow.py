"""A reference takes over a learner's weights: exact, whatever the ZeRO stage on either side."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from rank_processes import run_ranks

from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.process_group import ProcessGroupSettings
from workers.engines.zero.settings import ZeroSettings
from workers.engines.zero.weights import ZeroSource

HERE = Path(__file__).parent
PAIRS = ((0, 0, False), (0, 3, False), (2, 3, True), (3, 0, False), (3, 3, False))
NAMES = ("0 to 0", "0 to 3", "2 to 3 offloaded", "3 to 0", "3 to 3")


@pytest.fixture(scope="module")
def model(save_llama: Callable[..., Path]) -> Path:
    """Its vocabulary divides unevenly over two ranks."""
    return save_llama(vocab_size=21, intermediate_size=45)


@pytest.fixture(scope="module")
def results(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What rank 0 of two saw of every pair of stages."""
    folder = tmp_path_factory.mktemp("ranks")
    saved = run_ranks(HERE / "follow_rank.py", folder, 2, model=str(model), pairs=PAIRS)
    return torch.load(saved)


@pytest.mark.parametrize("pair", NAMES)
def test_a_copy_is_the_learner_to_the_bit(results: dict, pair: str) -> None:
    seen = results[pair]
    assert seen["copy"].keys() == seen["learner"].keys()
    for name, value in seen["learner"].items():
        assert torch.equal(seen["copy"][name], value), name
        assert not torch.equal(seen["before"][name], value), name  # the step changed everything
    # and it is what the next pass computes with, wherever parameters were kept whole
    assert torch.equal(seen["scored copy"], seen["scored learner"])
    assert not torch.equal(seen["scored before"], seen["scored learner"])


@pytest.mark.parametrize("pair", NAMES)
def test_a_share_is_an_average(results: dict, pair: str) -> None:
    seen = results[pair]
    for name, value in seen["half"].items():
        middle = (seen["before"][name] + seen["learner"][name]) / 2
        torch.testing.assert_close(value, middle, rtol=1e-6, atol=1e-7)


def test_another_model_is_refused(model: Path) -> None:
    engine = PolicyEngine(ZeroSettings(model=str(model), optimizer=None), ProcessGroupSettings())
    source = ZeroSource(engine.hf_model)
    with pytest.raises(ValueError, match=r"model.norm.weight has shape \(32,\) here and \(7,\)"):
        source.move("model.norm.weight", torch.zeros(7), 1.0)
    with pytest.raises(ValueError, match=r"lora_A is missing here and \(2, 2\)"):
        source.move("lora_A", torch.zeros(2, 2), 1.0)
    engine.close()
