"""Images are checked before a run starts: the model takes them, and rows can be sent."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.compose import compose
from conf.schema import DataConfig, TrainConfig
from conf.schema.data import ImagesConfig
from orchestrator.planning.inspection import inspect
from orchestrator.planning.plan import _images, _turns
from orchestrator.planning.settings import image_limits, policy_settings, vllm_settings
from orchestrator.planning.sources import (
    Sources,
    check_environments,
    check_sets,
    check_shown,
    prompt_sets,
)
from orchestrator.planning.trial import try_scorer
from tests.workers.data.images.folders import file_of, idefics_folder, noise
from workers.data.images.settings import ImageLimits
from workers.models.tiny_vision import build_tiny_vision
from workers.reward.scorers.exact import Exact

SMALL, LARGE = file_of(noise(56, 56)), file_of(noise(600, 400))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_vision(tmp_path_factory.mktemp("models") / "tiny")


@cache
def config_of(*overrides: str) -> TrainConfig:
    return compose(["experiment=tiny_vision", *overrides])[1]


def sources(
    folder: Path, tmp_path: Path, files: list[bytes], *overrides: str
) -> tuple[TrainConfig, Sources]:
    rows = {"prompt": ["<image>x"] * len(files), "ground_truth": ["r"] * len(files), "image": files}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    given = [f"data.train_path={tmp_path}/train.parquet", "data.build=null"]
    config = config_of(*given, *overrides)
    train, _ = prompt_sets(config.data)
    return config, Sources(model_path=folder, critic_path=folder, train=train, heldout=None)


def test_rows_of_which_none_can_be_sent_end_the_run_before_it_starts(
    folder: Path, tmp_path: Path
) -> None:
    config, found = sources(folder, tmp_path, [b"broken"] * 6)
    with pytest.raises(ValueError, match=r"none of the first 4 prompts of .* train:0: image 0: "):
        try_scorer(config, Exact(), found)


def test_images_that_make_every_prompt_too_long_end_it_too(folder: Path, tmp_path: Path) -> None:
    limit = "data.images.max_pixels=200704"
    config, found = sources(folder, tmp_path, [LARGE] * 4, limit)
    with pytest.raises(ValueError, match=r"are of images; lower data\.images\.max_pixels"):
        try_scorer(config, Exact(), found)


def test_one_broken_file_among_good_ones_is_a_note(folder: Path, tmp_path: Path) -> None:
    config, found = sources(folder, tmp_path, [SMALL, b"broken", SMALL])
    (note,) = (note for note in try_scorer(config, Exact(), found) if note.startswith("images"))
    assert note.startswith("images: train:1 will be dropped: image 0: image can't be read")


def test_inspection_shows_each_image_and_names_each_row_without_one(
    folder: Path, tmp_path: Path
) -> None:
    config, found = sources(folder, tmp_path, [SMALL, b"broken", SMALL, LARGE])
    text = "\n".join(inspect(config, Exact(), found))
    assert "train:0, 7 tokens: '<|vision_start|><image: 4 tokens><|vision_end|>x'" in text
    assert f"image of {len(SMALL)} bytes: 56 x 56 pixels, mean #" in text
    assert "patches 4 x 4" in text
    assert "1 row would not be sampled (train:1; " in text
    assert "duplicates: 1 row repeat a prompt of this file" in text  # by text and image


def test_a_model_of_text_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match=r"data\.image_column=image: .* is a model of text alone"):
        check_shown(tmp_path, DataConfig(image_column="image"))
    check_shown(tmp_path, DataConfig())


def test_a_model_that_takes_no_image_of_that_size_is_refused(tmp_path: Path) -> None:
    data = DataConfig(image_column="image", images=ImagesConfig(max_pixels=3000))
    folder = idefics_folder(tmp_path)
    with pytest.raises(ValueError, match=r"data\.images\.max_pixels=3000 is below the smallest"):
        check_shown(folder, data)


def test_engines_and_ranks_get_the_same_limits(folder: Path) -> None:
    config = config_of("data.images.max_pixels=6272", "data.images.max_per_prompt=2")
    engine = vllm_settings(config, str(folder), engine_id=0, transport="shm")
    assert engine.images == ImageLimits(max_pixels=6272, max_per_prompt=2)
    assert policy_settings(config, str(folder), trains=True).max_pixels == 6272
    plain = replace(config, data=replace(config.data, image_column=None))
    assert vllm_settings(plain, str(folder), engine_id=0, transport="shm").images is None


@pytest.mark.parametrize("key", ["max_pixels", "max_per_prompt"])
def test_impossible_limits_are_named(key: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.images\.{key}=0.* must be at least 1"):
        ImagesConfig(**{key: 0}).check()


def test_sources_with_and_without_images_are_read_and_refused_by_name(
    folder: Path, tmp_path: Path
) -> None:
    shown = {"prompt": ["<image>x"], "ground_truth": ["r"], "photo": [b"broken"]}
    pq.write_table(pa.table(shown), tmp_path / "shown.parquet")
    pq.write_table(pa.table({"prompt": ["x"], "ground_truth": ["r"]}), tmp_path / "plain.parquet")
    config = config_of(
        f"data.sources=[{{name: shown, path: {tmp_path}/shown.parquet, image_column: photo}}, "
        f"{{name: plain, path: {tmp_path}/plain.parquet}}]",
        *("data.build=null", "data.image_column=null"),
    )
    assert image_limits(config) == ImageLimits(max_pixels=3136, max_per_prompt=1)
    train, _ = prompt_sets(config.data)
    assert [train[row].images for row in range(2)] == [(b"broken",), ()]
    found = Sources(model_path=folder, critic_path=folder, train=train, heldout=None)
    with pytest.raises(
        ValueError, match=r"image_column=photo: none of the first 1 prompts of .*shown"
    ):
        try_scorer(config, Exact(), found)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    named = r"data\.sources\.shown\.image_column=photo: .* of text alone"
    with pytest.raises(ValueError, match=named):
        check_shown(tmp_path, config.data)


def test_a_held_out_set_with_images_needs_a_model_that_takes_them(tmp_path: Path) -> None:
    shown = config_of("data.image_column=null", "evaluation/set=[mmk12]")
    assert image_limits(shown) == ImageLimits(max_pixels=3136, max_per_prompt=1)
    assert image_limits(config_of("data.image_column=null")) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match=r"sets\.mmk12\.image_column=image: .* of text alone"):
        check_sets(tmp_path, shown)


def test_an_environment_that_shows_images_needs_a_model_that_takes_them(tmp_path: Path) -> None:
    shows = ("data.image_column=null", "environment=guessing", "environment.shows_images=true")
    config = config_of(*shows)
    assert image_limits(config) == ImageLimits(max_pixels=3136, max_per_prompt=1)
    text = "\n".join(line for _, line in (*_images(config), *_turns(config)))
    assert "those that the environment sends, 1 a prompt at most, scaled to 3136" in text
    assert "what is observed included, images with all of their tokens" in text
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match=r"environment\.shows_images=true: .* of text alone"):
        check_environments(tmp_path, config)
    check_environments(tmp_path, config_of("data.image_column=null"))
