"""LoRA under ZeRO: gradients, the base behind it, what is merged, saved, exported and refused."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import zero_matrix  # noqa: E402
from test_zero_engine import batches, plain_gradient, run_ranks, take_steps  # noqa: E402

from workers.engines.lora_settings import LoraSettings, check_targets, linear_names  # noqa: E402
from workers.engines.zero_engine import ZeroEngine  # noqa: E402
from workers.engines.zero_settings import OptimizerSettings, ZeroSettings  # noqa: E402
from workers.packing import pack  # noqa: E402
from workers.weight_sync.lora_source import (  # noqa: E402
    export_source,
    publication_source,
    published_name,
)
from workers.weight_sync.source import ZeroSource, expected_names  # noqa: E402

LORA = {"rank": 4, "alpha": 12.0, "seed": 5}
TOKENS = [5, 9, 3, 17, 4, 8, 11]
RATE, STEPS = 1.0, 3


def engine_of(folder: Path, stage: int = 0, **changes: object) -> ZeroEngine:
    values = {
        "optimizer": OptimizerSettings(lr=1e-2),
        "adapter": LoraSettings(**LORA),
        **changes,
    }
    return ZeroEngine(ZeroSettings(model=str(folder), zero_stage=stage, **values))


def with_peft(folder: Path) -> PeftModel:
    """The same adapter, made by peft alone on the plain model."""
    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(5)
    return get_peft_model(network, config)


def adapter_of(named: object) -> dict[str, torch.Tensor]:
    """A and B by the name of their layer."""
    return {
        name.removeprefix("base_model.model."): value.detach().clone()
        for name, value in named
        if ".lora_" in name
    }


def logprobs(network: torch.nn.Module, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        log_p = network(torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1)
    return log_p[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()


@pytest.fixture(scope="module")
def plain_adapter(model: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A and B by plain autograd and SGD: at the start and after the steps of a case."""
    network = with_peft(model)
    start = adapter_of(network.named_parameters())
    for _ in range(STEPS):
        network.zero_grad()
        plain_gradient(network)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter -= RATE * parameter.grad
    return start, adapter_of(network.named_parameters())


def check_steps(got: dict[str, torch.Tensor], plain_adapter: tuple) -> None:
    start, want = plain_adapter
    assert got.keys() == want.keys()
    assert len(want) == 2 * 2 * 7  # A and B of 7 matrices in 2 layers
    for name, value in want.items():
        moved = (value - start[name]).norm()
        assert moved > 1e-3, name
        assert (got[name] - value).norm() / moved < 1e-4, name


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_one_rank_takes_the_steps_of_plain_autograd(
    model: Path, plain_adapter: tuple, stage: int
) -> None:
    optimizer = OptimizerSettings(name="sgd", lr=RATE, max_grad_norm=float("inf"))
    engine = engine_of(model, stage, optimizer=optimizer, head_chunk=7)
    update = [
        pack(zero_matrix.rows(), cut, weights=zero_matrix.weights())
        for cut in ([0, 1, 2, 3], [4, 5, 6], [7, 8, 9])
    ]
    for _ in range(STEPS):
        engine.train([update], zero_matrix.TwoTermLoss(), temperature=zero_matrix.TEMPERATURE)
    got = adapter_of(ZeroSource(engine.hf_model))
    base = dict(export_source(engine.hf_model, rank=0, world_size=1, dtype=torch.float32))
    engine.close()
    check_steps(got, plain_adapter)
    assert "model.layers.0.mlp.up_proj.weight" in base


@pytest.mark.parametrize(
    ("world_size", "stages", "micro_batches", "checkpointing"),
    [
        (2, [0, 2, 3], [3], True),
        pytest.param(1, [0, 1, 2, 3], [1, 3], True, marks=pytest.mark.slow),
        pytest.param(2, [0, 1, 2, 3], [1, 3], False, marks=pytest.mark.slow),
    ],
)
def test_every_layout_takes_the_steps_of_plain_autograd(
    model: Path,
    tmp_path: Path,
    plain_adapter: tuple,
    world_size: int,
    stages: list[int],
    micro_batches: list[int],
    checkpointing: bool,
) -> None:
    results = run_ranks(
        tmp_path,
        world_size,
        model=str(model),
        stages=stages,
        micro_batches=micro_batches,
        checkpointing=checkpointing,
        max_grad_norm=float("inf"),
        lora=LORA,
        cases=[["weights", RATE, STEPS]],
    )
    assert len(results) == len(stages) * len(micro_batches)
    plain = dict(AutoModelForCausalLM.from_pretrained(model).named_parameters())
    for got in results.values():
        check_steps(adapter_of(got.items()), plain_adapter)
        for name, value in plain.items():  # the base has not moved by a bit
            held = got.get(name, got.get(name.replace(".weight", ".base_layer.weight")))
            assert torch.equal(held, value), name
