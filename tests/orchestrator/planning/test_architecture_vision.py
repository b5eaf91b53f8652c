"""Sizes of vision-language models, read from their folders, and the memory of their ranks."""

from pathlib import Path

import pytest

from conf.compose import compose
from conf.schema import ModelConfig, TowerConfig
from orchestrator.planning.architecture import architecture_of
from orchestrator.planning.memory import image_bytes, num_trained
from workers.models.tiny_vision import build_tiny_vision


@pytest.mark.parametrize(
    ("family", "total", "tower"),
    [
        (
            "qwen2_5_vl",
            635_840,
            TowerConfig(
                parameters=257_344,
                num_layers=2,
                hidden_size=64,
                intermediate_size=128,
                patches_per_token=4,
                values_per_patch=1176,
            ),
        ),
        (
            "idefics3",
            521_152,
            TowerConfig(
                parameters=138_560,
                num_layers=2,
                hidden_size=64,
                intermediate_size=128,
                patches_per_token=4,
                values_per_patch=588,
            ),
        ),
    ],
)
def test_sizes_of_decoder_and_tower(
    family: str, total: int, tower: TowerConfig, tmp_path: Path
) -> None:
    folder = build_tiny_vision(tmp_path / "model", architecture=family)
    found = architecture_of(ModelConfig(name="mine", path=str(folder)))
    assert found is not None
    assert (found.num_layers, found.hidden_size, found.num_kv_heads) == (2, 128, 2)
    assert (found.context, found.total_parameters, found.tower) == (2048, total, tower)
    _, config = compose(["experiment=tiny", "model=hf", f"model.path={folder}"])
    assert num_trained(config, found) == total - tower.parameters
    frozen = image_bytes(config, tower, trains=True)
    config.model.freeze = []
    assert num_trained(config, found) == total
    assert image_bytes(config, tower, trains=True) < frozen  # no features are kept
