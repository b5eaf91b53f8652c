"""Weights of float16: the scale of the loss, its overflows, its growth and its resumption."""

import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
import zero_matrix
from test_param_dtype import RATE, autograd, batches, largest_error, masters, take_steps

from workers.engines.zero.gradients import LossScale
from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings

#: Distance of a tensor's gradient in float16 from that in float32, relative; bfloat16's is 0.03.
FLOAT16_GRADIENT = 0.01


def engine_of(model: Path, stage: int, optimizer: OptimizerSettings) -> PolicyEngine:
    settings = ZeroSettings(
        model=str(model),
        zero_stage=stage,
        dtype="float16",
        param_dtype="float16",
        optimizer=optimizer,
    )
    return PolicyEngine(settings)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_masters_move_by_the_gradient_without_its_scale(
    model: Path, tmp_path: Path, stage: int
) -> None:
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float16).save_pretrained(tmp_path)
    descent = OptimizerSettings(name="sgd", lr=RATE, max_grad_norm=math.inf)
    engine = engine_of(tmp_path, stage, descent)
    assert engine.loss_scale is not None
    assert engine.loss_scale.value == 2.0**16
    before = masters(engine)
    result = take_steps(engine, 1)[0]
    got = {name: (before[name] - after) / RATE for name, after in masters(engine).items()}
    engine.close()
    want = autograd(tmp_path, torch.float32)
    norm = torch.cat(list(want.values())).norm()
    assert result.loss_scale == 2.0**16
    assert result.grad_norm == pytest.approx(float(norm), rel=FLOAT16_GRADIENT)
    assert largest_error(got, want) < FLOAT16_GRADIENT


def test_an_overflow_halves_the_scale_and_does_not_count_as_a_bad_gradient(model: Path) -> None:
    engine = engine_of(model, 2, OptimizerSettings(lr=1e-2))
    take_steps(engine, 1)
    before = masters(engine)
    assert engine.loss_scale is not None
    engine.loss_scale.restore({"value": 2.0**40, "updates": 7})
    skipped = take_steps(engine, 1)[0]
    assert (skipped.skipped, skipped.loss_scale, skipped.non_finite) == (True, 2.0**40, ())
    assert engine.loss_scale.value == 2.0**39
    assert (engine.progress.steps_taken, engine.progress.steps_skipped) == (1, 1)
    assert engine.progress.skipped_in_a_row == 0
    for name, value in masters(engine).items():
        assert torch.equal(value, before[name]), name
    # Under the smallest scale the gradient itself is at fault, and named.
    engine.loss_scale.restore({"value": 1.0, "updates": 0})
    bad = batches()
    bad[0].weights["policy"][0] = math.nan
    result = engine.train([bad], zero_matrix.TwoTermLoss(), temperature=1.0).updates[0]
    assert result.skipped
    assert "model.embed_tokens.weight" in result.non_finite or len(result.non_finite) == 8
    assert engine.progress.skipped_in_a_row == 1
    engine.loss_scale.restore({"value": 2.0**10, "updates": 0})
    assert not take_steps(engine, 1)[0].skipped
    engine.close()


def test_the_scale_doubles_after_a_thousand_updates_behind_the_division(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's own growth would halve the gradient of that update."""
    monkeypatch.setattr(LossScale, "GROWTH", 2)
    engine = engine_of(model, 2, OptimizerSettings(name="sgd", lr=1e-9))  # weights stay
    assert engine.loss_scale is not None
    engine.loss_scale.restore({"value": 2.0**8, "updates": 0})
    steps = take_steps(engine, 5)
    engine.close()
    assert [step.loss_scale for step in steps] == [2.0**8, 2.0**8, 2.0**9, 2.0**9, 2.0**10]
    assert [step.grad_norm for step in steps] == pytest.approx([steps[0].grad_norm] * 5, rel=1e-2)


def test_a_resumed_run_continues_the_scale_and_the_bits(model: Path, tmp_path: Path) -> None:
    optimizer = OptimizerSettings(lr=1e-3)
    whole = engine_of(model, 2, optimizer)
    assert whole.loss_scale is not None
    whole.loss_scale.restore({"value": 2.0**12, "updates": 5})
    take_steps(whole, 1)
    whole.save(tmp_path)
    take_steps(whole, 1)
    want = masters(whole)
    whole.close()
    resumed = engine_of(model, 2, optimizer)
    resumed.load(tmp_path)
    assert resumed.loss_scale is not None
    assert resumed.loss_scale.state() == {"value": 2.0**12, "updates": 6}
    take_steps(resumed, 1)
    for name, value in masters(resumed).items():
        assert torch.equal(value, want[name]), name
    resumed.close()
