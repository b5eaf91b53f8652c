"""The ZeRO engine against plain autograd, and its checkpoint, export and refusals."""

import gc
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import zero_matrix  # noqa: E402
from rank_processes import run_ranks  # noqa: E402

from workers.data.packing import pack  # noqa: E402
from workers.engines.model.lora_settings import LoraSettings  # noqa: E402
from workers.engines.zero.optimizers import master_weights, move_states  # noqa: E402
from workers.engines.zero.policy_engine import PolicyEngine  # noqa: E402
from workers.engines.zero.process_group import ProcessGroupSettings  # noqa: E402
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings, deepspeed_config  # noqa: E402


def plain_gradient(network: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradient and metrics by plain autograd: one unpacked sequence at a time, full logits."""
    rows, weights = zero_matrix.rows(), zero_matrix.weights()
    network.zero_grad()
    ratios, total = [], 0.0
    for row in range(zero_matrix.NUM_ROWS):
        column = {name: values[row].as_py() for name, values in rows.items()}
        tokens = torch.tensor(column["tokens"])
        logits = network(tokens[None], use_cache=False).logits[0, :-1] / zero_matrix.TEMPERATURE
        log_p = logits.log_softmax(-1)
        logprobs = log_p.gather(1, tokens[1:, None])[:, 0]
        entropy = -(log_p.exp() * log_p).sum(-1)
        mask = torch.tensor(column["loss_mask"])[1:]
        advantages = torch.tensor(column["advantages"])[1:]
        ratio = (logprobs - torch.tensor(column["old_logprobs"])[1:]).exp()
        policy = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        loss = (policy - 0.05 * entropy)[mask].sum() * weights["policy"][row]
        loss = loss - logprobs[mask].sum() * weights["nll"][row]
        loss.backward()
        total += float(loss.detach())
        ratios.append(ratio[mask].detach())
    every = torch.cat(ratios)
    metrics = {
        "loss": total,
        "num_tokens": float(len(every)),
        "ratio": float(every.mean()),
        "ratio_max": float(every.max()),
        "ratio_min": float(every.min()),
    }
    trained = ((name, p) for name, p in network.named_parameters() if p.requires_grad)
    return {name: p.grad.clone() for name, p in trained}, metrics


def expected(model: Path, max_grad_norm: float) -> dict[str, dict[str, torch.Tensor]]:
    """Weights after one step at the gradient's rate and after three small ones, and metrics."""
    found = {}
    for name, lr, steps in (("gradient", zero_matrix.GRADIENT_LR, 1), ("weights", 0.1, 3)):
        network = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
        figures: dict[str, float] = {}
        for step in range(steps):
            gradient, metrics = plain_gradient(network)
            norm = torch.cat([value.ravel() for value in gradient.values()]).norm()
            scale = min(1.0, max_grad_norm / (float(norm) + 1e-6))
            with torch.no_grad():
                for key, parameter in network.named_parameters():
                    parameter -= lr * scale * gradient[key]
            if step == 0:
                figures = metrics | {"norm": float(norm)}
        found[name] = {key: value.detach() for key, value in network.named_parameters()}
        found[name] |= {f"/{key}": torch.tensor(value) for key, value in figures.items()}
    return found


@pytest.mark.parametrize(
    ("world_size", "checkpointing", "max_grad_norm", "shared_prefix"),
    [(1, False, math.inf, False), (2, False, math.inf, True), (2, True, 0.05, True)],
)
def test_one_gradient_whatever_the_layout(
    model: Path,
    tmp_path: Path,
    world_size: int,
    checkpointing: bool,
    max_grad_norm: float,
    shared_prefix: bool,
) -> None:
    saved = run_ranks(
        zero_matrix.__file__,
        tmp_path,
        world_size,
        model=str(model),
        stages=[0, 1, 2, 3],
        micro_batches=[1, 3],
        checkpointing=checkpointing,
        max_grad_norm=max_grad_norm,
        shared_prefix=shared_prefix,
    )
    results = torch.load(saved)
    assert len(results) == 16
    want = expected(model, max_grad_norm)
    start = dict(AutoModelForCausalLM.from_pretrained(model).named_parameters())
    for case, got in results.items():
        kind = case.split("-")[2]
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


def engine_of(model: Path, stage: int = 0, **changes: object) -> PolicyEngine:
    optimizer = OptimizerSettings(lr=1e-2, weight_decay=0.1, warmup_steps=2)
    values = {"optimizer": optimizer} | changes
    return PolicyEngine(ZeroSettings(model=str(model), zero_stage=stage, **values))


def batches() -> list:
    weights = zero_matrix.weights()
    return [pack(zero_matrix.rows(), cut, weights=weights) for cut in ([0, 1, 2, 3], [4, 5, 6])]


def take_steps(engine: PolicyEngine, steps: int) -> None:
    for _ in range(steps):
        engine.train([batches()], zero_matrix.TwoTermLoss(), temperature=1.0)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resumed_equals_uninterrupted_to_the_bit(model: Path, tmp_path: Path, stage: int) -> None:
    whole = engine_of(model, stage)
    take_steps(whole, 5)
    want = whole.compute_logprobs(batches(), temperature=1.0)
    whole.close()
    first = engine_of(model, stage)
    take_steps(first, 2)
    first.save(tmp_path / "checkpoint")
    state = torch.get_rng_state()
    first.close()
    torch.manual_seed(99)
    second = engine_of(model, stage)
    second.load(tmp_path / "checkpoint")
    assert torch.equal(torch.get_rng_state(), state)
    take_steps(second, 3)
    assert second.progress.steps_taken == 5
    got = second.compute_logprobs(batches(), temperature=1.0)
    second.close()
    for one, other in zip(want.logprobs, got.logprobs, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("stage", [0, 3])
def test_export_is_the_same_model(model: Path, tmp_path: Path, stage: int) -> None:
    engine = engine_of(model, stage)
    take_steps(engine, 2)
    tokens = [5, 9, 3, 17, 4, 8]
    want = engine.probe([tokens])[0]
    engine.export_hf(tmp_path / "out")
    with pytest.raises(ValueError, match="already holds weights"):
        engine.export_hf(tmp_path / "out")
    engine.close()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    log_p = loaded(torch.tensor([tokens])).logits[0].log_softmax(-1)
    got = log_p[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    torch.testing.assert_close(got.detach(), torch.from_numpy(want[1:]), rtol=0, atol=1e-5)
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_non_finite_gradient_is_skipped_and_named(model: Path, stage: int) -> None:
    engine = engine_of(model, stage)
    take_steps(engine, 1)
    before = engine.probe([[3, 4, 5]])[0]
    good, bad = batches(), batches()
    bad[1].weights["policy"][0] = math.nan
    algorithm = zero_matrix.TwoTermLoss()
    result = engine.train([bad], algorithm, temperature=1.0).updates[0]
    assert result.skipped
    assert not math.isfinite(result.grad_norm)
    assert "model.embed_tokens.weight" in result.non_finite or len(result.non_finite) == 8
    assert engine.probe([[3, 4, 5]])[0].tobytes() == before.tobytes()
    assert (engine.progress.steps_taken, engine.progress.steps_skipped) == (1, 1)
    after = engine.train([good], algorithm, temperature=1.0).updates[0]
    assert not after.skipped
    assert after.lr == pytest.approx(1e-2)  # second step taken: (1 + 1) / 2 of 1e-2
    engine.close()


def test_identity_columns_and_missing_columns(model: Path) -> None:
    engine = engine_of(model)
    plain = batches()[0]
    columns = {"advantages": plain.columns["advantages"]}
    bare = pack(
        {name: zero_matrix.rows()[name] for name in ("tokens", "loss_mask", "advantages")},
        [0, 1, 2, 3],
        weights=zero_matrix.weights(),
    )
    assert bare.columns.keys() == columns.keys()
    algorithm = zero_matrix.TwoTermLoss()
    with pytest.raises(ValueError, match="no column old_logprobs"):
        engine.train([[bare]], algorithm, temperature=1.0)
    with pytest.raises(ValueError, match="old_is_current with 2 updates"):
        engine.train([[bare], [bare]], algorithm, temperature=1.0, old_is_current=True)
    scored = engine.compute_logprobs([bare], temperature=1.0, entropy=True)
    result = engine.train([[bare]], algorithm, temperature=1.0, old_is_current=True)
    assert result.updates[0].metrics["ratio"] == 1.0
    for one, other in zip(scored.logprobs, result.logprobs, strict=True):
        assert abs(one - other).max() < 1e-6
    assert scored.entropies is not None
    assert scored.entropies[0].shape == scored.logprobs[0].shape
    unweighted = pack(zero_matrix.rows(), [0], weights={"policy": zero_matrix.weights()["nll"]})
    with pytest.raises(ValueError, match="no sequence weights for the loss term nll"):
        engine.train([[unweighted]], algorithm, temperature=1.0)
    engine.close()


@pytest.mark.parametrize("stage", [0, 3])
def test_a_reference_scores_and_does_not_train(model: Path, stage: int) -> None:
    learner, reference = engine_of(model), engine_of(model, stage, optimizer=None)
    want = learner.compute_logprobs(batches(), temperature=0.9)
    got = reference.compute_logprobs(batches(), temperature=0.9)
    for one, other in zip(want.logprobs, got.logprobs, strict=True):
        assert abs(one - other).max() < 1e-6
    with pytest.raises(ValueError, match="only scores"):
        reference.train([batches()], zero_matrix.TwoTermLoss(), temperature=1.0)
    reference.close()
    learner.close()


@pytest.mark.parametrize("stage", [0, 2])
def test_bf16_keeps_float32_weights_and_logprobs(model: Path, stage: int) -> None:
    exact, rounded = engine_of(model), engine_of(model, stage, dtype="bfloat16")
    want, got = (engine.probe([[3, 9, 4, 11, 7]])[0] for engine in (exact, rounded))
    assert 0 < abs(want - got).max() < 0.1
    take_steps(rounded, 2)
    assert {p.dtype for p in rounded.hf_model.parameters()} == {torch.float32}
    rounded.close()
    exact.close()


@pytest.mark.parametrize(("stage", "params"), [(1, False), (2, False), (3, False), (3, True)])
def test_offloaded_state_trains_the_same(model: Path, stage: int, params: bool) -> None:
    plain = engine_of(model, stage)
    moved = engine_of(model, stage, offload_optimizer=True, offload_params=params)
    take_steps(plain, 3)
    take_steps(moved, 3)
    want, got = plain.probe([[3, 9, 4, 11]])[0], moved.probe([[3, 9, 4, 11]])[0]
    assert abs(want - got).max() < 1e-5
    moved.close()
    plain.close()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_state_that_was_moved_away_and_back_trains_the_same(model: Path, stage: int) -> None:
    """On CPU both places are one; what is tested is that nothing is lost on the way."""
    plain, moved = engine_of(model, stage), engine_of(model, stage)
    take_steps(plain, 3)
    for _ in range(3):
        move_states(moved._engine, torch.device("cpu"), stage=stage)
        if stage == 3:
            assert moved._engine.optimizer.offloaded_states
            moved._engine.reload_states()
        take_steps(moved, 1)
    want, got = plain.probe([[3, 9, 4, 11]])[0], moved.probe([[3, 9, 4, 11]])[0]
    assert want.tobytes() == got.tobytes()
    moved.close()
    plain.close()


def addresses(tensors) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_nothing_holds_the_memory_that_state_was_moved_from(model: Path, stage: int) -> None:
    """Under ZeRO 1 and 2 every parameter has views of its moments and of its master weights."""
    engine = engine_of(model, stage)
    take_steps(engine, 1)
    optimizer = engine._engine.optimizer
    state = [v for s in optimizer.state.values() for v in s.values() if v.dim()]
    state += master_weights(engine._engine)
    left = [tensor.untyped_storage() for tensor in state]  # kept, or their addresses came again
    move_states(engine._engine, torch.device("cpu"), stage=stage)
    alive = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
    assert not addresses(alive) & {storage.data_ptr() for storage in left}
    if stage in (1, 2):
        mappings = [p._hp_mapping for p in engine.module.parameters()]
        views = [m.hp_fragment for m in mappings]
        views += [v for m in mappings for v in (m.optim_fragment or {}).values()]
        assert addresses(views) <= addresses(state)
    engine.close()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_bucket_of_an_adapter_holds_its_gradients_and_no_more(model: Path, stage: int) -> None:
    engine = engine_of(model, stage, adapter=LoraSettings(rank=2))
    steps = engine._engine.optimizer
    trained = [
        getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters() if p.requires_grad
    ]
    assert steps.reduce_bucket_size == sum(trained) < 10_000
    take_steps(engine, 1)
    buffers = [bucket.buffer for bucket in steps.ipg_buckets.values()]
    sizes = [tensor.numel() for held in buffers for tensor in ([held] if stage == 3 else held)]
    assert set(sizes) <= {sum(trained)}
    engine.close()


def test_raw_deepspeed_settings_win(model: Path) -> None:
    raw = {"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": True}
    config = deepspeed_config(ZeroSettings(model=str(model), zero_stage=2, deepspeed=raw))
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000
    assert config["zero_optimization"]["stage"] == 2
    assert config["wall_clock_breakdown"] is True
    assert config["gradient_clipping"] == 1.0


def test_bad_settings_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="schedule 'triangle'"):
        OptimizerSettings(schedule="triangle")
    with pytest.raises(ValueError, match="state total_steps"):
        OptimizerSettings(schedule="cosine")
    with pytest.raises(ValueError, match="zero_stage=4"):
        ZeroSettings(model=str(model), zero_stage=4)
    with pytest.raises(ValueError, match=r"deepspeed\.gradient_accumulation_steps=4"):
        ZeroSettings(model=str(model), deepspeed={"gradient_accumulation_steps": 4})
    with pytest.raises(ValueError, match="set zero_stage"):
        ZeroSettings(model=str(model), deepspeed={"zero_optimization": {"stage": 2}})
    with pytest.raises(ValueError, match="does not exist"):
        PolicyEngine(ZeroSettings(model=str(tmp_path / "nowhere")))
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    with pytest.raises(ValueError, match="has no weights"):
        PolicyEngine(ZeroSettings(model=str(tmp_path)))
    with pytest.raises(ValueError, match="need a port"):
        ProcessGroupSettings(world_size=2)
