"""LoRA under ZeRO: gradients, the base behind it, what is merged, saved, exported and refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import zero_matrix  # noqa: E402
from rank_processes import run_ranks  # noqa: E402
from test_zero_engine import batches, plain_gradient, take_steps  # noqa: E402

from workers.engines.model.lora_settings import (  # noqa: E402
    LoraSettings,
    adapted_leaves,
    check_targets,
    linear_names,
)
from workers.engines.zero.lora_weights import export_source  # noqa: E402
from workers.engines.zero.policy_engine import PolicyEngine  # noqa: E402
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings  # noqa: E402
from workers.engines.zero.weights import ZeroSource  # noqa: E402

LORA = {"rank": 4, "alpha": 12.0, "seed": 5}
TOKENS = [5, 9, 3, 17, 4, 8, 11]
RATE, STEPS = 1.0, 3


def engine_of(folder: Path, stage: int = 0, **changes: object) -> PolicyEngine:
    values = {
        "optimizer": OptimizerSettings(lr=1e-2),
        "adapter": LoraSettings(**LORA),
        **changes,
    }
    return PolicyEngine(ZeroSettings(model=str(folder), zero_stage=stage, **values))


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


@pytest.mark.parametrize(
    ("world_size", "stages", "micro_batches", "checkpointing"),
    [
        (1, [0, 2, 3], [3], False),
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
    saved = run_ranks(
        zero_matrix.__file__,
        tmp_path,
        world_size,
        model=str(model),
        stages=stages,
        micro_batches=micro_batches,
        checkpointing=checkpointing,
        max_grad_norm=float("inf"),
        shared_prefix=world_size > 1,
        lora=LORA,
        cases=[["weights", RATE, STEPS]],
    )
    results = torch.load(saved)
    assert len(results) == len(stages) * len(micro_batches)
    plain = dict(AutoModelForCausalLM.from_pretrained(model).named_parameters())
    for got in results.values():
        check_steps(adapter_of(got.items()), plain_adapter)
        for name, value in plain.items():  # the base has not moved by a bit
            held = got.get(name, got.get(name.replace(".weight", ".base_layer.weight")))
            assert torch.equal(held, value), name


def trained(folder: Path, stage: int, **changes: object) -> PolicyEngine:
    """An engine whose adapter has taken two steps."""
    engine = engine_of(folder, stage, **changes)
    take_steps(engine, 2)
    return engine


@pytest.mark.parametrize("stage", [2, 3])
def test_what_is_merged_is_what_peft_merges(model: Path, stage: int) -> None:
    engine = trained(model, stage)
    place = {"rank": 0, "world_size": 1, "dtype": torch.float32}
    whole = {name: value.clone() for name, value in export_source(engine.hf_model, **place)}
    pieces = {name: torch.full((value.numel(),), torch.nan) for name, value in whole.items()}
    # A rank's slice begins and ends within rows; ZeRO-3 divides over the ranks that there are.
    for rank in range(1 if stage == 3 else 5):
        world = 1 if stage == 3 else 5
        source = export_source(engine.hf_model, rank=rank, world_size=world, dtype=torch.float32)
        for shard in source.shards():
            target = pieces[shard.name][shard.offset : shard.offset + shard.flat.numel()]
            assert target.isnan().all()
            target.copy_(shard.flat)
    network = with_peft(model)
    held = adapter_of(ZeroSource(engine.hf_model))
    engine.close()
    network.base_model.model.load_state_dict(held, strict=False)
    merged = dict(network.merge_and_unload().named_parameters())
    assert merged.keys() == whole.keys()
    plain = dict(AutoModelForCausalLM.from_pretrained(model).named_parameters())
    for name, value in merged.items():
        torch.testing.assert_close(whole[name], value, rtol=0, atol=1e-6, msg=name)
        torch.testing.assert_close(pieces[name].view_as(value), value, rtol=0, atol=1e-6, msg=name)
        assert torch.equal(value, plain[name]) == (not name.endswith("proj.weight")), name


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_without_its_adapter_it_is_the_base_to_the_bit(model: Path, stage: int) -> None:
    plain = engine_of(model, stage, adapter=None, optimizer=None)
    want = plain.compute_logprobs(batches(), temperature=0.9, entropy=True)
    plain.close()
    engine = trained(model, stage)
    got = engine.compute_logprobs(batches(), temperature=0.9, entropy=True, base=True)
    moved = engine.compute_logprobs(batches(), temperature=0.9, entropy=True)
    engine.close()
    for one, other, policy in zip(want.logprobs, got.logprobs, moved.logprobs, strict=True):
        assert one.tobytes() == other.tobytes()
        assert one.tobytes() != policy.tobytes()
    assert want.entropies is not None and got.entropies is not None
    for one, other in zip(want.entropies, got.entropies, strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_policy_without_adapter_has_no_base_to_score(model: Path) -> None:
    engine = engine_of(model, adapter=None)
    with pytest.raises(ValueError, match="no adapter to switch off: score a reference"):
        engine.compute_logprobs(batches(), temperature=1.0, base=True)
    engine.close()


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_resumed_equals_uninterrupted_to_the_bit(model: Path, tmp_path: Path, stage: int) -> None:
    whole = engine_of(model, stage)
    take_steps(whole, 3)
    want = whole.compute_logprobs(batches(), temperature=1.0)
    whole.close()
    first = engine_of(model, stage)
    take_steps(first, 2)
    first.save(tmp_path / "checkpoint")
    first.close()
    manifest = json.loads((tmp_path / "checkpoint" / "engine.json").read_text())
    assert all(".lora_" in name for name in manifest["parameters"])
    second = engine_of(model, stage)
    second.load(tmp_path / "checkpoint")
    take_steps(second, 1)
    got = second.compute_logprobs(batches(), temperature=1.0)
    second.close()
    for one, other in zip(want.logprobs, got.logprobs, strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_checkpoint_is_of_the_adapter_alone(model: Path, tmp_path: Path) -> None:
    engine = trained(model, 3)
    engine.save(tmp_path / "checkpoint")
    engine.close()
    names = load_file(tmp_path / "checkpoint" / "rank_00000.safetensors").keys()
    assert len(names) == 28 * 3  # A and B of 14 matrices: weight and AdamW's two moments
    assert all(".lora_" in name for name in names)
    other = engine_of(model, 3, adapter=LoraSettings(rank=5))
    with pytest.raises(ValueError, match=r"another model: .*lora_A"):
        other.load(tmp_path / "checkpoint")
    other.close()


@pytest.mark.parametrize("stage", [0, 3])
def test_the_export_is_the_merged_model_and_the_adapter(
    model: Path, tmp_path: Path, stage: int
) -> None:
    engine = trained(model, stage)
    want = engine.probe([TOKENS])[0][1:]
    engine.export_hf(tmp_path / "out")
    engine.close()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(model)
    assert abs(logprobs(base, TOKENS) - want).max() > 1e-3
    beside = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
    for network in (merged, beside):
        assert abs(logprobs(network, TOKENS) - want).max() < 1e-5
    record = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (record["r"], record["lora_alpha"], record["base_model_name_or_path"]) == (
        4,
        12.0,
        str(model),
    )


def test_autocast_leaves_weights_and_logprobs_in_float32(model: Path) -> None:
    exact, rounded = trained(model, 2), trained(model, 2, dtype="bfloat16")
    want, got = (engine.probe([TOKENS])[0] for engine in (exact, rounded))
    assert got.dtype == np.float32
    assert 0 < abs(want - got).max() < 0.3
    assert {parameter.dtype for parameter in rounded.hf_model.parameters()} == {torch.float32}
    rounded.close()
    exact.close()


def test_a_non_finite_gradient_names_the_adapter(model: Path) -> None:
    engine = trained(model, 2)
    bad = batches()
    bad[1].weights["policy"][0] = float("nan")
    result = engine.train([bad], zero_matrix.TwoTermLoss(), temperature=1.0).updates[0]
    engine.close()
    assert result.skipped
    assert result.non_finite
    assert all(".lora_" in name for name in result.non_finite)


def test_targets_that_match_nothing_are_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="qproj is no linear layer of this model, and no matrix"):
        engine_of(model, adapter=LoraSettings(target_modules=("q_proj", "qproj")))
    # The embedding is no linear layer, nor is the head, which may be tied to it.
    for name in ("embed_tokens", "lm_head", "norm"):
        with pytest.raises(ValueError, match=f"{name} is no linear layer"):
            engine_of(model, adapter=LoraSettings(target_modules=(name,)))
    names = linear_names(model)
    assert len(names) == 14
    targets = ("q_proj", "mlp.up_proj", "layers.0.self_attn.o_proj")
    check_targets(targets, names)
    assert adapted_leaves(targets, names) == ("o_proj", "q_proj", "up_proj")
    assert len(adapted_leaves("all-linear", names)) == 7
    with pytest.raises(ValueError, match=r"o_proje is no linear layer.*down_proj, gate_proj"):
        check_targets(("o_proje",), names)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "rank=0: must be at least 1"),
        ({"alpha": 0.0}, "alpha=0.0: must be positive"),
        ({"target_modules": ()}, "names no layer"),
        ({"publish": "both"}, "'both': choose merged or adapter"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraSettings(**wrong)
