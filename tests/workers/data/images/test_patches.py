from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.workers.data.images.folders import file_of, idefics_folder, noise, qwen_folder
from workers.data.images.decoding import decode
from workers.data.images.patches import digest_of, normalised, patches_of
from workers.data.images.settings import ImageSettings, read_image_settings

PICTURES = {
    "small": noise(30, 20),
    "wide": noise(500, 90, seed=1),
    "large": noise(301, 407, seed=2),
    "grey": noise(90, 60, seed=3).convert("L"),
    "palette": noise(90, 60, seed=4).quantize(16),
    "transparent": noise(90, 60, seed=5).convert("RGBA"),
    "deep": Image.fromarray((np.arange(5400, dtype=np.uint16) * 12).reshape(60, 90)),
}
PICTURES["transparent"].putalpha(77)


def settings_of(folder: Path, max_pixels: int | None = None) -> ImageSettings:
    settings = read_image_settings(folder, max_pixels=max_pixels)
    assert settings is not None
    return settings


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("limits", ["legacy", "new"])
@pytest.mark.parametrize("max_pixels", [None, 20000])
def test_patches_of_qwen_equal_the_processor_of_transformers_to_the_bit(
    tmp_path: Path, name: str, limits: str, max_pixels: int | None
) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    file = file_of(PICTURES[name])
    settings = settings_of(qwen_folder(tmp_path, limits), max_pixels)
    patches, grid = patches_of(file, settings)
    size = {"shortest_edge": 3136, "longest_edge": max_pixels or 50176}
    processor = Qwen2VLImageProcessorPil.from_pretrained(str(tmp_path))
    theirs = processor([decode(file)], size=size, return_tensors="np")
    assert grid == tuple(theirs["image_grid_thw"][0])
    assert patches.dtype == np.uint8 and len(patches) == settings.num_rows(grid)
    assert np.array_equal(normalised(patches, settings), theirs["pixel_values"])
    assert settings.num_features(grid) * 4 == len(patches)
    assert grid[1] * grid[2] * 196 <= size["longest_edge"]


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("splits", [True, False])
def test_tiles_of_idefics_equal_the_processor_of_transformers_to_the_bit(
    tmp_path: Path, name: str, splits: bool
) -> None:
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )

    file = file_of(PICTURES[name])
    settings = settings_of(idefics_folder(tmp_path, splits=splits))
    patches, grid = patches_of(file, settings)
    processor = Idefics3ImageProcessorPil.from_pretrained(str(tmp_path))
    theirs = processor([[decode(file)]], return_row_col_info=True, return_tensors="np")
    assert grid == (1, theirs["rows"][0][0], theirs["cols"][0][0])
    assert len(patches) == settings.num_rows(grid)
    assert np.array_equal(normalised(patches, settings), theirs["pixel_values"][0])
    assert theirs["pixel_attention_mask"].all()  # no tile is padded
    assert settings.num_features(grid) == 4 * len(patches)


def test_a_limit_of_pixels_makes_fewer_tiles(tmp_path: Path) -> None:
    file = file_of(PICTURES["large"])
    unlimited = settings_of(idefics_folder(tmp_path))
    limited = settings_of(tmp_path, 20000)  # sides of at most 112 = 2 tiles
    assert patches_of(file, unlimited)[1] == (1, 3, 3)
    assert patches_of(file, limited)[1] == (1, 2, 2)


def test_equal_digests_mean_equal_files_and_equal_settings(tmp_path: Path) -> None:
    settings, smaller = settings_of(qwen_folder(tmp_path)), settings_of(tmp_path, 20000)
    one, other = file_of(PICTURES["small"]), file_of(PICTURES["wide"])
    assert digest_of(one, settings) == digest_of(one, settings_of(tmp_path))
    assert len({digest_of(one, settings), digest_of(other, settings), digest_of(one, smaller)}) == 3
