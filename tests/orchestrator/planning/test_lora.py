"""What the plan says of an adapter, and what it refuses."""

from __future__ import annotations

import json

import pytest
from hydra.utils import instantiate
from transformers import AutoModelForCausalLM

from conf.compose import ConfigError, compose
from orchestrator.planning import memory, plan
from orchestrator.planning.architecture import architecture_of, num_parameters
from orchestrator.planning.roles import Place, role_named, roles_of
from orchestrator.planning.settings import policy_settings, vllm_settings
from workers.engines.model.lora import attach_lora
from workers.engines.model.lora_settings import LoraSettings
from workers.models.tiny import MIXTURES, build_tiny


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


@pytest.mark.parametrize("architecture", ["qwen3", *MIXTURES])
def test_the_plan_counts_the_parameters_that_train(tmp_path, architecture):
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_layers": 2}
    folder = build_tiny(tmp_path / architecture, architecture=architecture, **sizes)
    config, _ = composed("model=hf", f"model.path={folder}", "model/adapter=lora")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.set_output_embeddings(None)  # as a policy, whose head is no linear layer
    attach_lora(model, LoraSettings(rank=16))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.num_trained(config, architecture_of(config.model)) == trained


def test_every_expert_has_factors_of_its_own(tmp_path):
    """Qwen3-30B-A3B: 48 layers of 128 experts of width 768; 2048 wide, 32 and 4 heads of 128."""
    sizes = {"hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 128}
    sizes |= {"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4}
    record = {"model_type": "qwen3_moe", "head_dim": 128, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(record))
    config, _ = composed("model=hf", f"model.path={tmp_path}", "model/adapter=lora")
    attention = (2048 + 4096) + 2 * (2048 + 512) + (4096 + 2048)
    expert = (2048 + 2 * 768) + (768 + 2048)
    want = 48 * 16 * (attention + 128 * expert)
    assert want == 642_514_944
    assert memory.num_trained(config, architecture_of(config.model)) == want


def test_an_adapter_of_experts_is_not_published_by_itself(tmp_path):
    folder = build_tiny(tmp_path / "tiny", architecture="qwen3_moe", num_layers=1)
    chosen = ["model=hf", f"model.path={folder}", "model/adapter=lora"]
    plan.check_launch(*composed(*chosen))
    chosen.append("model.adapter.publish=adapter")
    with pytest.raises(ValueError, match=r"no adapter to experts .*gate_up_proj.*publish=merged"):
        plan.check_launch(*composed(*chosen))
    plan.check_launch(*composed(*chosen, "model.adapter.target_modules=[q_proj,o_proj]"))


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
