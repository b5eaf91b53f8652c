import json
from pathlib import Path

import pytest

from tests.workers.data.images.folders import idefics_folder, qwen_folder
from workers.data.images.settings import is_vision_model, read_image_settings


def test_settings_of_old_and_new_files_are_equal(tmp_path: Path) -> None:
    legacy = read_image_settings(qwen_folder(tmp_path, "legacy"), max_pixels=None)
    new = read_image_settings(qwen_folder(tmp_path, "new"), max_pixels=None)
    assert legacy == new
    assert new is not None
    assert (new.min_pixels, new.max_pixels, new.patch_size) == (3136, 50176, 14)


def test_settings_inside_the_file_of_a_whole_processor_are_read(tmp_path: Path) -> None:
    expected = read_image_settings(qwen_folder(tmp_path), max_pixels=None)
    inner = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    whole = {"image_processor": inner, "processor_class": "Qwen2_5_VLProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))
    assert read_image_settings(tmp_path, max_pixels=None) == expected


def test_a_text_model_has_no_settings_of_images(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert read_image_settings(tmp_path, max_pixels=None) is None
    assert not is_vision_model(tmp_path)
    assert is_vision_model(qwen_folder(tmp_path))


def test_another_family_is_refused_by_name(tmp_path: Path) -> None:
    config = {"model_type": "qwen3_vl", "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="model of type 'qwen3_vl'; images are supported for"):
        read_image_settings(tmp_path, max_pixels=None)


def test_a_limit_below_one_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.images\.max_pixels=3000 is below .* 3136"):
        read_image_settings(qwen_folder(tmp_path), max_pixels=3000)
    with pytest.raises(ValueError, match=r"max_pixels=3000 is below .* give at least 3136"):
        read_image_settings(idefics_folder(tmp_path), max_pixels=3000)
