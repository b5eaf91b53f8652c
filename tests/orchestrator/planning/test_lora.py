"""What the plan says of an adapter, and what it refuses."""

from __future__ import annotations

import pytest
from hydra.utils import instantiate

from conf.compose import ConfigError, compose
from orchestrator.planning import memory, plan
from orchestrator.planning.architecture import architecture_of, num_parameters
from orchestrator.planning.roles import Place, role_named, roles_of
from orchestrator.planning.settings import policy_settings, vllm_settings
from workers.models.tiny import build_tiny


def composed(*overrides: str):
    raw, config = compose(["experiment=tiny", *overrides])
    return config, instantiate(raw.algorithm, _convert_="all")


def test_the_reference_is_free_with_an_adapter():
    config, algorithm = composed("algorithm=grpo", "model/adapter=lora")
    assert "ref_logprobs" in algorithm.required_columns
    reference = role_named(roles_of(config, algorithm), "reference")
    assert (reference.place, reference.num_processes) == (Place.IN_LEARNER, 0)
    text = plan.describe(config, algorithm)
    assert "reference (the learner with its adapter switched off)" in text
    assert "lora, rank 16, alpha 32, on all-linear; published merged" in text
    config, algorithm = composed("algorithm=grpo")
    reference = role_named(roles_of(config, algorithm), "reference")
    assert (reference.place, reference.num_processes) == (Place.OWN, 1)
    assert "adapter" not in plan.describe(config, algorithm)


def test_a_reference_that_moves_has_no_weights_to_move():
    moving = ["algorithm=grpo", "algorithm/reference=moving_average"]
    plan.check(*composed(*moving))
    with pytest.raises(ValueError, match=r"model/adapter=lora .*MovingAverage.*reference=frozen"):
        plan.check(*composed(*moving, "model/adapter=lora"))


def test_only_the_adapter_has_gradients_and_moments():
    sizes = ["model=qwen25_7b", "model.path=/models/qwen", "model.adapter.rank=16"]
    whole, _ = composed(*sizes)
    adapted, _ = composed(*sizes, "model/adapter=lora")
    model = architecture_of(adapted.model)
    # Qwen2.5-7B: hidden 3584, feed-forward 18944, 28 query and 4 key/value heads of 128, 28 layers.
    attention = 2 * (3584 + 3584) + 2 * (3584 + 512)
    assert memory.num_trained(adapted, model) == 28 * 16 * (attention + 3 * (3584 + 18944))
    assert memory.num_trained(whole, model) == num_parameters(model)
    parts = [
        memory.policy_share(config, model, num_ranks=1, trains=True).parts
        for config in (whole, adapted)
    ]
    assert parts[0]["weights"] == parts[1]["weights"]
    for name in ("gradients", "AdamW"):
        assert parts[1][name] < parts[0][name] / 100


def test_settings_of_the_engines(tmp_path):
    folder = str(build_tiny(tmp_path / "tiny"))
    by_itself = ["model/adapter=lora", "model.adapter.publish=adapter"]
    config, _ = composed(*by_itself, "model.adapter.target_modules=[q_proj,down_proj]")
    engine = vllm_settings(config, folder, engine_id=0, transport="shm")
    assert (engine.adapter_rank, engine.adapter_layers) == (16, ("down_proj", "q_proj"))
    learner = policy_settings(config, folder, trains=True)
    assert learner.adapter is not None
    assert learner.adapter.target_modules == ("q_proj", "down_proj")
    assert policy_settings(config, folder, trains=False).adapter is None
    config, _ = composed("model/adapter=lora")
    assert vllm_settings(config, folder, engine_id=0, transport="shm").adapter_rank is None
    with pytest.raises(ConfigError, match="goes by rollout.transport=shm or gloo, not nccl"):
        compose([*by_itself, "rollout.transport=nccl"])
