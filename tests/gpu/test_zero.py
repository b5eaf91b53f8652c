"""The ZeRO engine on one GPU, every stage, against plain autograd; where DeepSpeed is installed."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from algorithms.inputs import LossInputs, TokenLoss
from workers.data.packing import PackedBatch, pack

pytestmark = pytest.mark.gpu
pytest.importorskip("deepspeed", reason="ZeRO is DeepSpeed's, which is not installed")

from workers.engines.model.lora_settings import LoraSettings  # noqa: E402
from workers.engines.zero.policy_engine import PolicyEngine  # noqa: E402
from workers.engines.zero.process_group import ProcessGroupSettings, join, leave  # noqa: E402
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings  # noqa: E402

TEMPERATURE = 0.8
LR = 0.05


@dataclass(frozen=True, kw_only=True)
class PolicyGradient:
    """-A log p - 0.05 H."""

    loss_columns: frozenset[str] = frozenset({"entropy"})

    def token_loss(self, inputs: LossInputs) -> TokenLoss:
        """One term."""
        assert inputs.entropy is not None
        loss = -inputs.logprobs * inputs.advantages - 0.05 * inputs.entropy
        flags = torch.zeros_like(inputs.loss_mask, dtype=torch.uint8)
        return TokenLoss(terms={"policy": loss}, metrics={}, flags=flags)


def rows() -> dict[str, pa.Array]:
    """Six sequences of 5 to 200 tokens; all but the first two tokens train."""
    rng = np.random.default_rng(7)
    lengths = (5, 200, 17, 64, 199, 33)
    return {
        "tokens": pa.array([rng.integers(3, 211, n) for n in lengths], pa.list_(pa.int32())),
        "loss_mask": pa.array([np.arange(n) >= 2 for n in lengths], pa.list_(pa.bool_())),
        "advantages": pa.array([rng.normal(size=n) for n in lengths], pa.list_(pa.float32())),
    }


def micro_batches() -> list[PackedBatch]:
    """Two, of four and of two sequences."""
    weights = {"policy": np.full(6, 1 / 500, dtype=np.float32)}
    return [pack(rows(), cut, weights=weights) for cut in ([0, 1, 2, 3], [4, 5])]


def plain_step(folder: Path, device: torch.device) -> tuple[dict[str, Tensor], float]:
    """Weights after one SGD step on whole logits, one sequence at a time; the gradient's norm."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").to(device)
    for number in range(6):
        column = {name: values[number].as_py() for name, values in rows().items()}
        tokens = torch.tensor(column["tokens"], device=device)
        log_p = (model(tokens[None], use_cache=False).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
        picked = log_p.gather(1, tokens[1:, None])[1:, 0]
        entropy = -(log_p.exp() * log_p).sum(-1)[1:]
        advantages = torch.tensor(column["advantages"], device=device)[2:]
        ((-picked * advantages - 0.05 * entropy).sum() / 500).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= LR * parameter.grad
    return {name: p.detach() for name, p in model.named_parameters()}, float(norm)


@pytest.fixture(scope="module")
def group(device: torch.device) -> Iterator[ProcessGroupSettings]:
    """One rank, in a group that lasts for the module: NCCL where there is a GPU."""
    settings = ProcessGroupSettings(backend="nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        torch.cuda.set_device(0)
    joined = join(settings)
    yield settings
    if joined:
        leave()


def engine_of(
    folder: Path, group: ProcessGroupSettings, stage: int, **changes: Any
) -> PolicyEngine:
    """Plain SGD without clipping, unless told otherwise."""
    values = {"optimizer": OptimizerSettings(name="sgd", lr=LR, max_grad_norm=math.inf)} | changes
    return PolicyEngine(ZeroSettings(model=str(folder), zero_stage=stage, **values), group)


def train(engine: PolicyEngine, steps: int = 1) -> float:
    """Steps on the same two micro-batches; the norm of the last one's gradient."""
    norm = 0.0
    for _ in range(steps):
        result = engine.train([micro_batches()], PolicyGradient(), temperature=TEMPERATURE)
        norm = result.updates[0].grad_norm
    return norm


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_is_that_of_plain_autograd(
    device: torch.device,
    folder: Path,
    tmp_path: Path,
    group: ProcessGroupSettings,
    stage: int,
    checkpointing: bool,
) -> None:
    want, norm = plain_step(folder, device)
    engine = engine_of(folder, group, stage, gradient_checkpointing=checkpointing)
    assert train(engine) == pytest.approx(norm, rel=1e-4)
    probe = engine.probe([[5, 9, 3, 17, 4]])[0]
    engine.export_hf(tmp_path / "out")
    engine.close()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    before = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    for name, parameter in loaded.named_parameters():
        moved, expected = parameter - before[name], want[name].cpu() - before[name]
        assert float((moved - expected).norm() / expected.norm()) < 2e-3, name
    log_p = loaded(torch.tensor([[5, 9, 3, 17, 4]])).logits[0].log_softmax(-1)
    own = log_p[:-1].gather(1, torch.tensor([9, 3, 17, 4])[:, None])[:, 0]
    torch.testing.assert_close(torch.from_numpy(probe)[1:], own.detach(), rtol=0, atol=3e-5)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_state_leaves_the_device_and_comes_back(
    device: torch.device,
    folder: Path,
    group: ProcessGroupSettings,
    stage: int,
    say: Callable[[str], None],
) -> None:
    optimizer = OptimizerSettings(lr=1e-3)
    stays = engine_of(folder, group, stage, optimizer=optimizer)
    train(stays, 3)
    want = stays.probe([[3, 9, 4, 11]])[0]
    stays.close()
    moves = engine_of(folder, group, stage, optimizer=optimizer)
    train(moves, 1)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        moves.offload_states()
        freed = before - torch.cuda.memory_allocated()
        weights = 4 * sum(
            parameter.numel()
            for parameter in AutoModelForCausalLM.from_pretrained(folder).parameters()
        )
        say(f"stage {stage}: {freed / weights:.2f} times the weights left the device")
        # Two moments, and above stage 0 the master weights.
        assert freed >= (2 if stage == 0 else 3) * weights
    else:
        moves.offload_states()
    moves.reload_states()
    train(moves, 2)
    got = moves.probe([[3, 9, 4, 11]])[0]
    moves.close()
    assert abs(got - want).max() < 1e-4


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloaded_optimizer_trains_the_same(
    device: torch.device, folder: Path, group: ProcessGroupSettings, stage: int
) -> None:
    optimizer = OptimizerSettings(lr=1e-3)
    probes = []
    for offload in (False, True):
        engine = engine_of(folder, group, stage, optimizer=optimizer, offload_optimizer=offload)
        train(engine, 3)
        probes.append(engine.probe([[3, 9, 4, 11]])[0])
        engine.close()
    assert abs(probes[0] - probes[1]).max() < 1e-4


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bf16_products_keep_float32_weights(
    device: torch.device, folder: Path, group: ProcessGroupSettings, stage: int
) -> None:
    exact, rounded = (
        engine_of(folder, group, stage, dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    gap = abs(exact.probe([[3, 9, 4, 11, 7]])[0] - rounded.probe([[3, 9, 4, 11, 7]])[0]).max()
    assert 0 < gap < 0.1
    norms = train(exact), train(rounded)
    assert norms[1] == pytest.approx(norms[0], rel=0.05)
    assert {p.dtype for p in rounded.hf_model.parameters()} == {torch.float32}
    exact.close()
    rounded.close()


@pytest.mark.parametrize("stage", [0, 3])
def test_an_adapter_trains(
    device: torch.device, folder: Path, tmp_path: Path, group: ProcessGroupSettings, stage: int
) -> None:
    adapter = LoraSettings(rank=4, alpha=8.0)
    engine = engine_of(folder, group, stage, adapter=adapter, optimizer=OptimizerSettings(lr=1e-2))
    start = engine.probe([[3, 9, 4, 11]])[0]
    train(engine, 2)
    got = engine.probe([[3, 9, 4, 11]])[0]
    assert abs(got - start).max() > 1e-3
    engine.export_hf(tmp_path / "out")
    engine.close()
    merged = engine_of(tmp_path / "out", group, 0, optimizer=None)
    assert abs(merged.probe([[3, 9, 4, 11]])[0] - got).max() < 1e-4
    merged.close()
