"""Tiny vision-language folders hold all that transformers reads of a real one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from workers.models.tiny_vision import build_tiny_vision

MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hue?"}]}]


def test_a_tiny_qwen_reads_a_picture_of_56_pixels_as_four_tokens(tmp_path: Path) -> None:
    folder = build_tiny_vision(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>hue?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    picture = Image.fromarray(np.full((56, 56, 3), 200, dtype=np.uint8))
    pixels = AutoImageProcessor.from_pretrained(folder)(images=picture, return_tensors="pt")
    assert pixels["image_grid_thw"].tolist() == [[1, 4, 4]]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    features = model.get_image_features(**pixels, return_dict=True).pooler_output
    assert [tuple(each.shape) for each in features] == [(4, 128)]
    assert sum(p.numel() for p in model.parameters()) == 635_840
    config = json.loads((folder / "preprocessor_config.json").read_text())
    assert config["processor_class"] == "Qwen2_5_VLProcessor"


def test_a_tiny_idefics_reads_a_picture_as_four_tiles_and_the_whole(tmp_path: Path) -> None:
    folder = build_tiny_vision(tmp_path / "model", architecture="idefics3")
    picture = Image.fromarray(np.full((56, 56, 3), 200, dtype=np.uint8))
    pixels = AutoImageProcessor.from_pretrained(folder)(images=picture, return_tensors="pt")
    assert tuple(pixels["pixel_values"].shape) == (1, 5, 3, 56, 56)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    features = model.get_image_features(**pixels, return_dict=True).pooler_output
    assert tuple(features.shape) == (5, 4, 128)


def test_special_tokens_stand_behind_the_vocabulary(tmp_path: Path) -> None:
    folder = build_tiny_vision(tmp_path / "model", tie_word_embeddings=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("a<|image_pad|>B", add_special_tokens=False) == [14, 66, 15]
    assert json.loads((folder / "config.json").read_text())["image_token_id"] == 66


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose qwen2_5_vl or idefics3"):
        build_tiny_vision(tmp_path / "model", architecture="llava")
