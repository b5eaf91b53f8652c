"""Routers of mixtures of experts: their load, their balancing loss, and both in training."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "zero"))
import zero_matrix
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from workers.data.packing import pack
from workers.engines.model.families.routers import Routings, routers, watched
from workers.engines.model.lora_settings import LoraSettings
from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings
from workers.models.tiny import MIXTURES, build_tiny


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(
        tmp_path_factory.mktemp("mixture") / request.param,
        architecture=request.param,
        hidden_size=64,
        num_layers=2,
        intermediate_size=32,
    )


def engine_of(model: Path, **changes: object) -> PolicyEngine:
    values = {"optimizer": OptimizerSettings(name="sgd", lr=0.02, max_grad_norm=math.inf)} | changes
    return PolicyEngine(ZeroSettings(model=str(model), **values))


def train(engine: PolicyEngine) -> dict[str, float]:
    batch = pack(zero_matrix.rows(), range(zero_matrix.NUM_ROWS), weights=zero_matrix.weights())
    result = engine.train([[batch]], zero_matrix.TwoTermLoss(), temperature=1.0)
    return result.updates[0].metrics


def test_the_load_is_the_busiest_share_over_an_even_one() -> None:
    """Six pairs of three tokens and two of four experts: 3, 2, 1, 0; an even share is 1.5."""
    chosen = torch.tensor([[0, 1], [0, 1], [0, 2]])
    routings = Routings(logits=[torch.zeros(3, 4)], chosen=[chosen])
    assert routings.shares().tolist() == [[0.5, pytest.approx(1 / 3), pytest.approx(1 / 6), 0.0]]
    assert float(routings.load()) == pytest.approx(2.0)
    assert float(routings.balance()) == pytest.approx(1.0)  # all probabilities are 1/4


def test_the_balance_is_that_of_transformers_over_k() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 8, generator=generator)
    chosen = logits.topk(2, dim=-1).indices
    own = Routings(logits=[logits], chosen=[chosen]).balance()
    theirs = load_balancing_loss_func((logits,), num_experts=8, top_k=2)
    assert float(own) == pytest.approx(float(theirs) / 2, rel=1e-6)


def test_every_layers_router_is_watched_and_a_dense_model_has_none(mixture: Path) -> None:
    engine = engine_of(mixture, optimizer=None)
    assert len(routers(engine.hf_model)) == 2
    with watched(engine.hf_model) as routings:
        engine.probe([[3, 9, 4, 11, 7]])
    assert [tuple(logits.shape) for logits in routings.logits] == [(5, 4), (5, 4)]
    assert [tuple(chosen.shape) for chosen in routings.chosen] == [(5, 2), (5, 2)]
    assert torch.equal(
        routings.logits[0].topk(2, dim=-1).indices.sort(-1).values,
        routings.chosen[0].sort(-1).values,
    )
    engine.probe([[3, 9, 4]])
    assert len(routings.logits) == 2  # nothing is collected outside
    engine.close()
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 21}
    dense = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1))
    assert routers(dense) == []


def test_descent_on_the_balance_evens_the_experts() -> None:
    """From a router that sends every token to experts 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 8, generator=generator)
    bias = torch.tensor([4.0, 3.0, 0.0, 0.0], requires_grad=True)
    weight = torch.randn(4, 8, generator=generator)
    loads = []
    for _ in range(50):
        logits = hidden @ weight.t() * 0.1 + bias
        routings = Routings(logits=[logits], chosen=[logits.topk(2, dim=-1).indices])
        loads.append(float(routings.load()))
        (gradient,) = torch.autograd.grad(routings.balance(), bias)
        bias = (bias - gradient).detach().requires_grad_()
    assert loads[0] == 2.0
    assert loads[-1] < 1.3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_balance_adds_its_coefficient_to_every_trained_token(
    mixture: Path, checkpointing: bool
) -> None:
    steps = {}
    for coefficient in (0.0, 5.0):
        engine = engine_of(
            mixture, router_balance=coefficient, gradient_checkpointing=checkpointing
        )
        metrics = train(engine)
        routers_after = [module.weight.detach().clone() for module, _ in routers(engine.hf_model)]
        steps[coefficient] = metrics, routers_after
        engine.close()
    (without, plain), (found, balanced) = steps[0.0], steps[5.0]
    assert "router/balance" not in without
    assert 1.0 <= without["router/load_ratio"] == found["router/load_ratio"] <= 2.0
    masks, weights = zero_matrix.rows()["loss_mask"], zero_matrix.weights()["policy"]
    total = sum(sum(mask.as_py()) * weight for mask, weight in zip(masks, weights, strict=True))
    added = found["loss"] - without["loss"]
    assert added == pytest.approx(5.0 * found["router/balance"] * float(total), rel=1e-4)
    for one, other in zip(plain, balanced, strict=True):
        assert not torch.equal(one, other)


def test_what_has_no_gradient_or_no_whole_micro_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="no rank sees all tokens"):
        ZeroSettings(model="m", router_balance=0.01, sequence_parallel_size=2)
    with pytest.raises(ValueError, match="have no gradient there"):
        ZeroSettings(model="m", router_balance=0.01, gradient_checkpointing=True, zero_stage=3)
    with pytest.raises(ValueError, match="must not be negative"):
        ZeroSettings(model="m", router_balance=-1.0)


@pytest.mark.parametrize("adapter", [None, LoraSettings(rank=4)], ids=["full", "adapter"])
def test_a_trained_mixture_is_exported_and_read_back_to_the_bit(
    mixture: Path, tmp_path: Path, adapter: LoraSettings | None
) -> None:
    engine = engine_of(mixture, adapter=adapter)
    before = engine.probe([[3, 9, 4, 11, 7]])[0]
    train(engine)
    want = engine.probe([[3, 9, 4, 11, 7]])[0]
    engine.export_hf(tmp_path / "out")
    engine.close()
    read = engine_of(tmp_path / "out", optimizer=None)
    got = read.probe([[3, 9, 4, 11, 7]])[0]
    read.export_hf(tmp_path / "again")
    read.close()
    assert abs(want - before).max() > 1e-6
    # A merged adapter adds in another order than one beside its base.
    assert abs(got - want).max() <= (0.0 if adapter is None else 1e-5)
    for path in (tmp_path / "out").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_experts_of_bfloat16_compute_in_bfloat16(mixture: Path) -> None:
    class Products(TorchDispatchMode):
        """Types of the factors of every matrix product."""

        def __init__(self) -> None:
            super().__init__()
            self.found: set[torch.dtype] = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if any(name in str(function) for name in ("mm", "linear")):
                factors = (each for each in args if isinstance(each, torch.Tensor))
                self.found |= {each.dtype for each in factors if each.is_floating_point()}
            return function(*args, **(kwargs or {}))

    engine = engine_of(mixture, optimizer=None, dtype="bfloat16", param_dtype="bfloat16")
    block = engine.hf_model.model.layers[0].mlp
    with Products() as products, torch.no_grad():
        block(torch.randn(1, 7, 64, dtype=torch.bfloat16))
    engine.close()
    assert products.found == {torch.bfloat16}
