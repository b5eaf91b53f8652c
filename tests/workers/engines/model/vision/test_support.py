"""Families whose images are not computed are refused by name, with the reason."""

import json
from pathlib import Path

import pytest

from workers.engines.model.critic_model import load_critic_model
from workers.engines.model.policy_model import load_policy_model
from workers.engines.model.vision.support import supported_images


def folder_of(path: Path, kind: str) -> Path:
    (path / "config.json").write_text(json.dumps({"model_type": kind, "vision_config": {}}))
    (path / "model.safetensors").write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("qwen3_vl", "its decoder adds features of inner layers of the tower"),
        ("smolvlm", "its processor, which vLLM asks for, needs the package num2words"),
        ("qwen2_vl", "transformers has no language model of this type alone"),
    ],
)
def test_other_families_are_refused_with_the_reason(kind: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"of type {kind} is not supported: {reason}"):
        load_policy_model(folder_of(tmp_path, kind))


def test_a_critic_of_a_vision_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="critics read no images"):
        load_critic_model(folder_of(tmp_path, "qwen2_5_vl"))


def test_the_text_of_another_vision_model_may_train(tmp_path: Path) -> None:
    assert supported_images(folder_of(tmp_path, "gemma3")) is None
