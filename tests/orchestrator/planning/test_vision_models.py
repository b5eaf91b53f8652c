"""Sizes, memory and refusals of vision-language models, from their folders, before a run."""

from pathlib import Path

import pytest
from hydra.utils import instantiate

from conf.compose import compose
from conf.schema import ModelConfig, TowerConfig
from orchestrator.planning.architecture import architecture_of
from orchestrator.planning.memory import image_bytes, num_trained
from orchestrator.planning.shared_prefix import planned
from orchestrator.planning.sources import check_context, prepare
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


def test_settings_that_images_do_not_run_with_are_refused_before_the_start(tmp_path: Path) -> None:
    folder = build_tiny_vision(tmp_path / "model")
    model = ["experiment=tiny", "model=hf", f"model.path={folder}"]
    shared = ["learner.num_ranks=2", "learner.sequence_parallel_size=2"]
    _, config = compose([*model, *shared])
    with pytest.raises(ValueError, match="ranks that share a batch do not divide images"):
        prepare(config)
    with pytest.raises(ValueError, match="exceeds the context of model, 2048 tokens"):
        check_context(folder, 2049)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "idefics3"])
def test_siblings_share_their_prompt_with_its_images(family: str, tmp_path: Path) -> None:
    folder = build_tiny_vision(tmp_path / "model", architecture=family)
    raw, config = compose(["experiment=tiny", "model=hf", f"model.path={folder}"])
    assert planned(config, instantiate(raw.algorithm, _convert_="all"))["learner"].shares
