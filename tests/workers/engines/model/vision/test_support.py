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


def test_qwen3_vl_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"qwen3_vl is not supported: .*inner layers of the tower"):
        load_policy_model(folder_of(tmp_path, "qwen3_vl"))


def test_a_critic_of_a_vision_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="critics read no images"):
        load_critic_model(folder_of(tmp_path, "qwen2_5_vl"))


def test_the_text_of_another_vision_model_may_train(tmp_path: Path) -> None:
    assert supported_images(folder_of(tmp_path, "gemma3")) is None
