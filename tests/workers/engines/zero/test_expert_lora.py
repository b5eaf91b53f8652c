"""LoRA on the experts of a mixture: gradients, merging, resume, export, and what is refused."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import zero_matrix  # noqa: E402
from rank_processes import run_ranks  # noqa: E402
from test_lora import engine_of, logprobs  # noqa: E402
from test_zero_engine import batches, plain_gradient, take_steps  # noqa: E402

from workers.data.packing import pack  # noqa: E402
from workers.engines.model.lora_settings import LoraSettings  # noqa: E402
from workers.engines.zero.lora_weights import export_source  # noqa: E402
from workers.engines.zero.policy_engine import PolicyEngine  # noqa: E402
from workers.engines.zero.settings import OptimizerSettings  # noqa: E402
from workers.engines.zero.weights import ZeroSource  # noqa: E402
from workers.models.tiny import build_tiny  # noqa: E402

SLOW = pytest.mark.slow
SCALE = 12.0 / 4  # of test_lora's settings: alpha 12, rank 4
RATE = 300.0  # so large that weights minus weights is the gradient
TOKENS = [5, 9, 3, 17, 4, 8, 11]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module", params=["qwen3_moe", pytest.param("mixtral", marks=SLOW)])
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(
        tmp_path_factory.mktemp("mixture") / request.param,
        architecture=request.param,
        hidden_size=64,
        num_layers=2,
        intermediate_size=32,
    )


def factors_of(held: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of experts, by the base model's name of the matrix that they stand beside."""
    return {
        name.removesuffix(".lora_A").replace(".factors.", "."): (
            tensor,
            held[name.replace("lora_A", "lora_B")],
        )
        for name, tensor in held.items()
        if name.endswith(".lora_A")
    }


def merged_with_autograd(folder: Path, held: dict[str, Tensor]) -> nn.Module:
    """The plain model, each adapted matrix of which is W + scale B A, with gradients to it."""
    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    named = dict(network.named_parameters())
    with torch.no_grad():
        for name, (a, b) in factors_of(held).items():
            for expert in range(a.shape[0]):
                named[name][expert] += SCALE * b[expert] @ a[expert]
        for name, tensor in held.items():
            if name.endswith("lora_A.default.weight"):
                own = held[name.replace("lora_A", "lora_B")]
                target = name.removesuffix(".lora_A.default.weight")
                named[f"{target}.weight"] += SCALE * own @ tensor
    return network


def check_gradient(folder: Path, first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """An SGD step from `first` to `second` is the chain rule through the merged model.

    dL/dA = scale B^T dL/dW and dL/dB = scale dL/dW A^T, expert by expert.
    """
    gradient, _ = plain_gradient(merged_with_autograd(folder, first))
    before, after = factors_of(first), factors_of(second)
    assert len(before) == 2 * 2  # gate_up_proj and down_proj of two layers
    for name, (a, b) in before.items():
        through = gradient[name]  # [E, out, in]
        wanted = (
            torch.stack([SCALE * own.T @ each for own, each in zip(b, through, strict=True)]),
            torch.stack([SCALE * each @ own.T for own, each in zip(a, through, strict=True)]),
        )
        for factor, want in enumerate(wanted):
            got = (before[name][factor] - after[name][factor]) / RATE  # [E, ...]
            assert want.flatten(1).norm(dim=1).min() > 1e-6, name
            assert (got - want).norm() / want.norm() < 1e-5, name
            apart = (got - want).flatten(1).norm(dim=1) / want.flatten(1).norm(dim=1)
            assert apart.max() < 1e-4, name  # each expert's own


def step(engine: PolicyEngine) -> dict[str, Tensor]:
    """One step on the rows of the matrix; the tensors after it."""
    rows, weights = zero_matrix.rows(), zero_matrix.weights()
    batch = pack(rows, range(zero_matrix.NUM_ROWS), weights=weights)
    engine.train([[batch]], zero_matrix.TwoTermLoss(), temperature=zero_matrix.TEMPERATURE)
    return {name: value.clone() for name, value in ZeroSource(engine.hf_model)}


@pytest.mark.parametrize(
    ("stage", "checkpointing"), [pytest.param(0, True, marks=SLOW), (2, False), (3, True)]
)
def test_the_gradient_is_that_of_the_merged_model(
    mixture: Path, stage: int, checkpointing: bool
) -> None:
    sgd = OptimizerSettings(name="sgd", lr=RATE, max_grad_norm=float("inf"))
    engine = engine_of(mixture, stage, optimizer=sgd, gradient_checkpointing=checkpointing)
    first = step(engine)
    second = step(engine)
    engine.close()
    check_gradient(mixture, first, second)
    plain = dict(AutoModelForCausalLM.from_pretrained(mixture).named_parameters())
    for name, value in plain.items():  # the base has not moved by a bit, nor have the routers
        held = second.get(name, second.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(held, value), name


def trained(folder: Path, stage: int, **changes: Any) -> PolicyEngine:
    """An engine whose adapter has taken two steps."""
    engine = engine_of(folder, stage, **changes)
    take_steps(engine, 2)
    return engine


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=SLOW)])
def test_each_expert_is_published_as_its_base_and_its_product(mixture: Path, stage: int) -> None:
    engine = trained(mixture, stage)
    place = {"rank": 0, "world_size": 1}
    whole = {name: value.clone() for name, value in export_source(engine.hf_model, **place)}
    pieces = {name: torch.full((value.numel(),), torch.nan) for name, value in whole.items()}
    world = 1 if stage == 3 else 5  # a rank's slice begins and ends within rows and experts
    for rank in range(world):
        for shard in export_source(engine.hf_model, rank=rank, world_size=world).shards():
            target = pieces[shard.name][shard.offset : shard.offset + shard.flat.numel()]
            assert target.isnan().all()
            target.copy_(shard.flat)
    held = {name: value.clone() for name, value in ZeroSource(engine.hf_model)}
    engine.close()
    base = dict(AutoModelForCausalLM.from_pretrained(mixture).named_parameters())
    assert whole.keys() == base.keys()
    for name, (a, b) in factors_of(held).items():
        for expert in range(4):
            want = base[name][expert] + 3.0 * b[expert] @ a[expert]  # alpha 12 over rank 4
            assert abs(want - base[name][expert]).max() > 1e-3
            torch.testing.assert_close(whole[name][expert], want, rtol=0, atol=1e-6, msg=name)
    for name, value in whole.items():
        assert torch.equal(pieces[name].view_as(value), value), name
        adapted = name.endswith("_proj.weight") or ".experts." in name
        assert torch.equal(value, base[name]) == (not adapted), name


@pytest.mark.parametrize("stage", [pytest.param(0, marks=SLOW), 3])
def test_without_its_adapter_a_mixture_is_the_base_to_the_bit(mixture: Path, stage: int) -> None:
    plain = engine_of(mixture, stage, adapter=None, optimizer=None)
    want = plain.compute_logprobs(batches(), temperature=0.9)
    plain.close()
    engine = trained(mixture, stage)
    got = engine.compute_logprobs(batches(), temperature=0.9, base=True)
    moved = engine.compute_logprobs(batches(), temperature=0.9)
    engine.close()
    for one, other, policy in zip(want.logprobs, got.logprobs, moved.logprobs, strict=True):
        assert one.tobytes() == other.tobytes()
        assert one.tobytes() != policy.tobytes()


@pytest.mark.parametrize("stage", [pytest.param(2, marks=SLOW), 3])
def test_a_resumed_mixture_equals_the_uninterrupted_to_the_bit(
    mixture: Path, tmp_path: Path, stage: int
) -> None:
    whole = trained(mixture, stage)
    whole.save(tmp_path / "checkpoint")
    take_steps(whole, 1)
    want = {name: value.clone() for name, value in ZeroSource(whole.hf_model)}
    whole.close()
    second = engine_of(mixture, stage)
    second.load(tmp_path / "checkpoint")
    take_steps(second, 1)
    got = {name: value.clone() for name, value in ZeroSource(second.hf_model)}
    second.close()
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], value) for name, value in want.items())


@pytest.mark.parametrize(
    ("stage", "targets"),
    [(0, "all-linear"), pytest.param(3, ("experts.down_proj", "q_proj"), marks=SLOW)],
)
def test_the_export_is_the_merged_mixture_and_an_adapter_of_peft(
    mixture: Path, tmp_path: Path, stage: int, targets: Any
) -> None:
    settings = LoraSettings(rank=4, alpha=12.0, target_modules=targets)
    engine = trained(mixture, stage, adapter=settings)
    want = engine.probe([TOKENS])[0][1:]
    engine.export_hf(tmp_path / "out")
    engine.close()
    names = load_file(tmp_path / "out" / WEIGHTS).keys()
    assert names == load_file(mixture / WEIGHTS).keys()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(mixture)
    assert abs(logprobs(base, TOKENS) - want).max() > 1e-3
    beside = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
    for network in (merged, beside):
        assert abs(logprobs(network, TOKENS) - want).max() < 1e-5


def test_the_base_may_have_16_bits(mixture: Path) -> None:
    engine = engine_of(mixture, 2, dtype="bfloat16", param_dtype="bfloat16")
    before = engine.probe([TOKENS])[0]
    base = {name: value.clone() for name, value in ZeroSource(engine.hf_model)}
    take_steps(engine, 2)
    after = dict(ZeroSource(engine.hf_model))
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    moved = {name for name, value in after.items() if not torch.equal(value, base[name])}
    assert moved == {name for name in after if ".lora_" in name}
    assert 1e-4 < np.abs(engine.probe([TOKENS])[0] - before).max() < 10.0
    engine.close()


def test_what_engines_cannot_apply_and_routers_are_refused(mixture: Path) -> None:
    with pytest.raises(ValueError, match=r"no adapter to experts .*publish=merged, or name other"):
        engine_of(mixture, adapter=LoraSettings(publish="adapter"))
    engine_of(mixture, adapter=LoraSettings(publish="adapter", target_modules=("q_proj",))).close()
    for name in ("gate", "w1"):
        with pytest.raises(ValueError, match=rf"{name} is no linear layer.*gate_up_proj"):
            engine_of(mixture, adapter=LoraSettings(target_modules=(name,)))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_ranks_take_the_gradient_of_the_merged_model(
    mixture: Path, tmp_path: Path, checkpointing: bool
) -> None:
    saved = run_ranks(
        zero_matrix.__file__,
        tmp_path,
        2,
        model=str(mixture),
        stages=[0, 1, 2, 3],
        micro_batches=[1, 3],
        checkpointing=checkpointing,
        max_grad_norm=float("inf"),
        lora={"rank": 4, "alpha": 12.0, "seed": 5},
        cases=[["one", RATE, 1], ["two", RATE, 2]],
    )
    results = torch.load(saved)
    assert len(results) == 4 * 2 * 2
    for key, first in results.items():
        if key.endswith("-one"):
            check_gradient(mixture, first, results[key.replace("-one", "-two")])
