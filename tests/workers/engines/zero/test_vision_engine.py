"""Rows with images under every ZeRO stage: plain autograd's gradient, frozen weights untouched."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from rank_processes import run_ranks

from tests.workers.engines.zero.vision_rank import LR, WEIGHTS, LikelihoodLoss, batch_of, rows_of
from workers.engines.model.policy_model import load_policy_model
from workers.engines.model.vision.names import is_vision_name
from workers.engines.zero.policy_engine import PolicyEngine
from workers.engines.zero.settings import OptimizerSettings, ZeroSettings
from workers.models.tiny_vision import build_tiny_vision

SCRIPT = Path(__file__).with_name("vision_rank.py")


def autograd(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights, and the gradient of the whole batch in one process, without DeepSpeed."""
    policy = load_policy_model(folder)
    policy.freeze([])
    batch = batch_of(rows_of(folder), [0, 1, 2, 3, 4, 5], shared=False)
    logprobs, _ = policy(
        batch.tokens, batch.position_ids, batch.cu_seqlens, batch.loss_mask, images=batch.images
    )
    weights = torch.tensor(WEIGHTS)[batch.sequence_ids]
    (logprobs.square() * weights).sum().backward()
    named = dict(policy.model.named_parameters())
    return (
        {name: p.detach().clone() for name, p in named.items()},
        {name: p.grad for name, p in named.items() if p.grad is not None},
    )


@pytest.mark.parametrize(
    ("family", "stages", "checkpointing"),
    [
        ("qwen2_5_vl", [3], False),
        pytest.param("qwen2_5_vl", [0, 1, 2], False, marks=pytest.mark.slow),
        pytest.param("qwen2_5_vl", [2, 3], True, marks=pytest.mark.slow),
        pytest.param("idefics3", [0, 1, 2, 3], False, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_of_which_one_sees_no_image(
    family: str, stages: list[int], checkpointing: bool, tmp_path: Path
) -> None:
    model = build_tiny_vision(tmp_path / "model", architecture=family)
    out = run_ranks(
        SCRIPT, tmp_path, 2, model=str(model), stages=stages, checkpointing=checkpointing
    )
    results = torch.load(out)
    before, gradient = autograd(model)
    for stage in stages:
        for kind in ("frozen", "trained"):
            after = results[f"{stage}-{kind}"]
            for name, weight in before.items():
                if kind == "frozen" and is_vision_name(name, family):
                    assert torch.equal(after[name], weight), name
                    continue
                found = (weight - after[name]) / LR
                gap = (found - gradient[name]).norm() / max(gradient[name].norm(), 1e-3)
                assert gap < 1e-5, (stage, kind, name, float(gap))


@pytest.mark.parametrize("freeze", [None, pytest.param((), marks=pytest.mark.slow)])
def test_a_resumed_run_goes_on_to_the_bit(freeze: tuple[()] | None, tmp_path: Path) -> None:
    model = build_tiny_vision(tmp_path / "model")
    rows = rows_of(model)
    update = [batch_of(rows, [0, 1, 2]), batch_of(rows, [3, 4, 5]), batch_of(rows, [])]
    settings = ZeroSettings(model=str(model), optimizer=OptimizerSettings(lr=1e-3), freeze=freeze)

    def weights(engine: PolicyEngine) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in engine.hf_model.named_parameters()}

    engine = PolicyEngine(settings)
    loaded = weights(engine)
    engine.train([update], LikelihoodLoss(), temperature=1.0)
    engine.save(tmp_path / "saved")
    engine.train([update], LikelihoodLoss(), temperature=1.0)
    wanted = weights(engine)
    engine.close()
    again = PolicyEngine(settings)
    again.load(tmp_path / "saved")
    again.train([update], LikelihoodLoss(), temperature=1.0)
    found = weights(again)
    again.close()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    trained = json.loads((tmp_path / "saved" / "engine.json").read_text())["trained"]
    kept = {name for name in wanted if torch.equal(wanted[name], loaded[name])}
    tower = {name for name in wanted if name.startswith("model.visual.")}
    assert kept == (tower if freeze is None else set())
    assert set(trained) == set(wanted) - kept
