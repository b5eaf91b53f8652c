"""Bytes of pixels become what the image processor of transformers gives, to the bit."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from tests.workers.engines.model.vision.pictures import png, settings_of
from workers.data.images import patches_of
from workers.engines.model.policy_model import load_policy_model
from workers.models.tiny_vision import build_tiny_vision


@pytest.mark.parametrize("family", ["qwen2_5_vl", "idefics3"])
def test_bytes_scaled_later_equal_the_processor_to_the_bit(family: str, tmp_path: Path) -> None:
    folder = build_tiny_vision(tmp_path / "model", architecture=family)
    vision = load_policy_model(folder).vision
    assert vision is not None
    file = png(180, 95, 7)
    patches, _ = patches_of(file, settings_of(folder))
    found = vision.layout.normalised(torch.from_numpy(patches))
    picture = Image.open(io.BytesIO(file)).convert("RGB")
    wanted = AutoImageProcessor.from_pretrained(folder)([[picture]], return_tensors="np")
    assert np.array_equal(found.numpy(), wanted["pixel_values"].reshape(patches.shape))


@pytest.mark.parametrize(("family", "count"), [("qwen2_5_vl", 1), ("idefics3", 4)])
def test_the_blank_picture_is_the_smallest(family: str, count: int, tmp_path: Path) -> None:
    vision = load_policy_model(build_tiny_vision(tmp_path / "model", architecture=family)).vision
    assert vision is not None
    layout = vision.layout
    blank = layout.normalised(layout.blank("cpu"))
    assert layout.features(blank, [layout.smallest]).shape == (count, 128)
