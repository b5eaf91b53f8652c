"""The choice between one computed prompt and one for each sibling, and the reason in the plan."""

import json
from pathlib import Path

import pytest
from hydra.utils import instantiate

from conf.compose import compose
from orchestrator.planning import plan, shared_prefix


def row(*overrides: str) -> str:
    """The line of the plan."""
    raw, config = compose(["experiment=tiny", *overrides])
    algorithm = instantiate(raw.algorithm, _convert_="all")
    plan.check(config, algorithm)
    lines = plan.describe(config, algorithm).splitlines()
    return next(line for line in lines if line.startswith("  prefixes  "))[12:]


@pytest.mark.parametrize("value", ["auto", "true", "True"])
def test_prefixes_are_shared_where_they_can_be(value: str) -> None:
    shared = "siblings compute their common one once in a micro-batch"
    assert row(f"learner.shared_prefix={value}") == shared
    assert row("algorithm=ppo", f"learner.shared_prefix={value}") == shared


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["learner.shared_prefix=false"], "learner.shared_prefix=false"),
        (["algorithm=ppo", "rollout.samples_per_prompt=1"], "rollout.samples_per_prompt=1"),
        (
            ["learner.num_ranks=2", "learner.sequence_parallel_size=2"],
            "learner.sequence_parallel_size=2",
        ),
        (["learner.attention=flash_attention_2"], "learner.attention=flash_attention_2"),
    ],
)
def test_the_plan_says_why_they_are_not(overrides: list[str], reason: str) -> None:
    assert row(*overrides) == f"each sequence computes its own ({reason})"


def test_a_critic_may_be_the_only_one_that_does_not() -> None:
    text = row("algorithm=ppo", "critic.attention=flash_attention_2")
    assert text.endswith("the critic does not (critic.attention=flash_attention_2)")


def test_what_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"shared_prefix=true with learner.attention=flash_atten"):
        row("learner.shared_prefix=true", "learner.attention=flash_attention_2")
    with pytest.raises(ValueError, match=r"with critic.attention=flash_attention_2, which cannot"):
        row("algorithm=ppo", "learner.shared_prefix=true", "critic.attention=flash_attention_2")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"model_type": "llama"}, ""),
        ({"model_type": "gemma3_text", "layer_types": ["sliding_attention"]}, ""),
        (
            {"model_type": "qwen3_next", "layer_types": ["full_attention", "linear_attention"]},
            "model_type=qwen3_next (linear_attention)",
        ),
        ({"model_type": "mamba", "state_size": 16}, "model_type=mamba (state_size)"),
        ({"model_type": "lfm2", "conv_L_cache": 3}, "model_type=lfm2 (conv_L_cache)"),
        ({"model_type": "rwkv"}, "model_type=rwkv (its recurrent layers)"),
        ({"text_config": {"model_type": "jamba", "mamba_d_state": 16}}, "model_type=jamba (mamba_"),
    ],
)
def test_layers_that_mix_tokens_otherwise_than_by_attention(
    tmp_path: Path, record: dict[str, object], reason: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(record))
    raw, config = compose(["experiment=tiny"])
    algorithm = instantiate(raw.algorithm, _convert_="all")
    folders = {"model_path": tmp_path, "critic_path": tmp_path}
    choice = shared_prefix.of_roles(config, algorithm, **folders)["learner"]
    assert choice.shares is (not reason)
    assert choice.reason.startswith(reason)
    if reason:
        config.learner.shared_prefix = "true"
        with pytest.raises(ValueError, match="which cannot share the prompt of siblings"):
            shared_prefix.of_roles(config, algorithm, **folders)
