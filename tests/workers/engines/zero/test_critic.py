"""The critic's engine against a padded forward and plain autograd; its clip, its checkpoint."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parent))
import critic_matrix
import zero_matrix
from rank_processes import run_ranks

from workers.data.packing import pack
from workers.engines.zero.critic_engine import CriticEngine
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings


@pytest.fixture(scope="module")
def model(save_llama: Callable[..., Path]) -> Path:
    """A Llama language model: its backbone is the critic's."""
    return save_llama(tie_word_embeddings=False)


class PlainCritic(nn.Module):
    """Transformers' own backbone on padded batches, and a linear head."""

    def __init__(self, model: Path) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(model, attn_implementation="eager")
        self.value_head = nn.Linear(32, 1)
        generator = torch.Generator().manual_seed(5)
        nn.init.normal_(self.value_head.weight, std=0.2, generator=generator)
        nn.init.constant_(self.value_head.bias, 0.1)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """Values [B, L] of [B, L] tokens padded on the right; that of a first token is 0."""
        hidden = self.model(input_ids=tokens, attention_mask=real.long()).last_hidden_state
        said = self.value_head(hidden[:, :-1])[..., 0]
        return torch.cat([torch.zeros_like(said[:, :1]), said], dim=1)


def padded(name: str) -> Tensor:
    rows = critic_matrix.rows()[name].to_pylist()
    tensors = [torch.tensor(row) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def plain_loss(network: PlainCritic) -> tuple[Tensor, dict[str, float]]:
    """0.5 max((V - R)^2, (clip(V) - R)^2) by hand, on one padded batch."""
    lengths = torch.tensor([len(row) for row in critic_matrix.rows()["tokens"]])
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    values = network(padded("tokens"), real)
    old, returns, mask = (padded(name) for name in ("old_values", "returns", "loss_mask"))
    near = torch.minimum(torch.maximum(values, old - critic_matrix.CLIP), old + critic_matrix.CLIP)
    loss = 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)
    weights = torch.tensor(critic_matrix.weights()["value"], dtype=torch.float32)
    total = (loss * weights[:, None])[mask].sum()
    clipped = ((values - old).abs() > critic_matrix.CLIP)[mask].float().mean()
    metrics = {
        "loss": float(total.detach()),
        "value/mean": float(values[mask].detach().mean()),
        "value/clip_frac": float(clipped),
        "num_tokens": float(mask.sum()),
    }
    return total, metrics


def expected(model: Path, max_grad_norm: float) -> dict[str, dict[str, Tensor]]:
    """Weights after one step at the gradient's rate and after three small ones, and metrics."""
    found = {}
    for name, lr, steps in (("gradient", zero_matrix.GRADIENT_LR, 1), ("weights", 0.1, 3)):
        network = PlainCritic(model)
        figures: dict[str, float] = {}
        for step in range(steps):
            network.zero_grad()
            loss, metrics = plain_loss(network)
            loss.backward()
            gradient = {key: value.grad for key, value in network.named_parameters()}
            norm = torch.cat([value.ravel() for value in gradient.values()]).norm()
            with torch.no_grad():
                for key, parameter in network.named_parameters():
                    parameter -= lr * min(1.0, max_grad_norm / (float(norm) + 1e-6)) * gradient[key]
            if step == 0:
                figures = metrics | {"norm": float(norm)}
        found[name] = {key: value.detach() for key, value in network.named_parameters()}
        found[name] |= {f"/{key}": torch.tensor(value) for key, value in figures.items()}
    return found


FAST = (2, [0, 1, 2, 3], [3], False, math.inf)
WIDE = [
    (1, [0, 1, 2, 3], [1, 3], False, math.inf),
    (2, [0, 1, 2, 3], [1, 3], True, 0.05),
]


@pytest.mark.parametrize(
    ("world_size", "stages", "micro_batches", "checkpointing", "max_grad_norm"),
    [FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in WIDE)],
)
def test_one_gradient_whatever_the_layout(
    model: Path,
    tmp_path: Path,
    world_size: int,
    stages: list[int],
    micro_batches: list[int],
    checkpointing: bool,
    max_grad_norm: float,
) -> None:
    saved = run_ranks(
        critic_matrix.__file__,
        tmp_path,
        world_size,
        model=str(model),
        stages=stages,
        micro_batches=micro_batches,
        checkpointing=checkpointing,
        max_grad_norm=max_grad_norm,
        shared_prefix=world_size > 1,
    )
    results = torch.load(saved)
    assert len(results) == 2 * len(stages) * len(micro_batches)
    want = expected(model, max_grad_norm)
    assert 0 < want["gradient"]["/value/clip_frac"] < 1
    start = dict(PlainCritic(model).named_parameters())
    for case, got in results.items():
        kind = case.split("-")[2]
        assert {name for name in got if not name.startswith("/")} == set(start)
        for name, value in want[kind].items():
            if name.startswith("/"):
                torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6, msg=case + name)
                continue
            if kind == "gradient":
                mine, plain = got[name] - start[name], value - start[name]
                relative = (mine - plain).norm() / plain.norm()
                assert relative < 1e-5, f"{case} {name}: {relative:.1e}"
            else:
                torch.testing.assert_close(got[name], value, rtol=0, atol=1e-5, msg=case + name)


def settings_of(model: Path, stage: int = 0, **changes: object) -> ZeroSettings:
    values = {"optimizer": OptimizerSettings(lr=1e-2, warmup_steps=2)} | changes
    return ZeroSettings(model=str(model), zero_stage=stage, **values)


def batches() -> list:
    return [critic_matrix.packed(cut) for cut in ([0, 1, 2, 3], [4, 5, 6])]


@pytest.mark.parametrize("stage", [0, 3])
def test_values_are_the_padded_forwards_of_the_state_before_the_token(
    model: Path, stage: int
) -> None:
    engine = critic_matrix.TiltedCritic(settings_of(model, stage))
    said = engine.values(batches())
    engine.close()
    lengths = torch.tensor([len(row) for row in critic_matrix.rows()["tokens"]])
    with torch.no_grad():
        want = PlainCritic(model)(
            padded("tokens"), torch.arange(int(lengths.max())) < lengths[:, None]
        )
    masks = padded("loss_mask")
    assert len(said) == 7
    for row, values in enumerate(said):
        mask = masks[row, : len(values)]
        mine = torch.from_numpy(values)
        # float32 rounds what the head adds up, so the unit is the largest value.
        gap = (mine - want[row, : len(values)])[mask].abs().max()
        assert gap <= 1e-6 * want.abs().max(), f"{gap:.1e} of {want.abs().max():.1f}"
        assert not mine[~mask].any()


def test_the_first_values_are_zero_and_the_second_gradient_reaches_the_backbone(
    model: Path,
) -> None:
    engine = CriticEngine(settings_of(model, optimizer=OptimizerSettings(name="sgd", lr=0.1)))
    assert not any(values.any() for values in engine.values(batches()))
    embedding = engine.module.model.get_input_embeddings().weight
    start = embedding.detach().clone()
    engine.train([batches()], critic_matrix.ALGORITHM)
    assert torch.equal(embedding, start)
    engine.train([batches()], critic_matrix.ALGORITHM)
    assert not torch.equal(embedding, start)
    engine.close()


@pytest.mark.parametrize(
    ("returns", "loss", "norm"),
    [
        # V = 1, V_old = 0, clip 0.3. Target 2: 0.5 max((1-2)^2, (0.3-2)^2) = 0.5 * 2.89, and the
        # clipped side has no gradient.
        (2.0, 1.445, 0.0),
        # Target -1: 0.5 max((1+1)^2, (0.3+1)^2) = 2, whose derivative with respect to V is 2.
        (-1.0, 2.0, 2.0),
    ],
)
def test_a_value_that_left_the_clip_is_not_pushed_further(
    model: Path, returns: float, loss: float, norm: float
) -> None:
    engine = CriticEngine(settings_of(model))
    nn.init.constant_(engine.module.value_head.bias, 1.0)
    engine.module.model.requires_grad_(False)
    engine.module.value_head.weight.requires_grad_(False)
    columns = {
        "tokens": [[3, 4, 5]],
        "loss_mask": [[False, False, True]],
        "old_values": [[0.0, 0.0, 0.0]],
        "returns": [[0.0, 0.0, returns]],
    }
    batch = pack({name: pa.array(rows) for name, rows in columns.items()}, weights={"value": [1.0]})
    update = engine.train([[batch]], critic_matrix.ALGORITHM)[0]
    engine.close()
    assert update.metrics["loss"] == pytest.approx(loss, abs=1e-6)
    assert update.grad_norm == pytest.approx(norm, abs=1e-6)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_resumed_equals_uninterrupted_to_the_bit(model: Path, tmp_path: Path, stage: int) -> None:
    def steps(engine: CriticEngine, count: int) -> None:
        for _ in range(count):
            engine.train([batches()], critic_matrix.ALGORITHM)

    whole = CriticEngine(settings_of(model, stage))
    steps(whole, 4)
    want = whole.values(batches())
    whole.close()
    first = CriticEngine(settings_of(model, stage))
    steps(first, 2)
    first.save(tmp_path / "critic")
    first.close()
    second = CriticEngine(settings_of(model, stage))
    second.load(tmp_path / "critic")
    steps(second, 2)
    assert second.progress.steps_taken == 4
    got = second.values(batches())
    second.close()
    assert np.concatenate(got).any()
    for one, other in zip(want, got, strict=True):
        assert one.tobytes() == other.tobytes()


def test_bf16_keeps_a_float32_head(model: Path) -> None:
    exact, rounded = (
        critic_matrix.TiltedCritic(settings_of(model, dtype=dtype))
        for dtype in ("float32", "bfloat16")
    )
    want, got = (np.concatenate(engine.values(batches())) for engine in (exact, rounded))
    assert 0 < abs(want - got).max() < 0.1
    assert {p.dtype for p in rounded.module.parameters()} == {torch.float32}
    rounded.train([batches()], critic_matrix.ALGORITHM)
    exact.close()
    rounded.close()


def test_missing_columns_and_weights_are_named(model: Path) -> None:
    engine = CriticEngine(settings_of(model))
    bare = pack(zero_matrix.rows(), [0, 1], weights=critic_matrix.weights())
    with pytest.raises(ValueError, match="no column old_values, returns, which the value loss"):
        engine.train([[bare]], critic_matrix.ALGORITHM)
    unweighted = pack(critic_matrix.rows(), [0], weights={"policy": [1.0] * 10})
    with pytest.raises(ValueError, match="no sequence weights for the loss term value"):
        engine.train([[unweighted]], critic_matrix.ALGORITHM)
    engine.close()
