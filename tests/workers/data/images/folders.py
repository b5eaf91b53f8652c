"""Folders with the files from which image settings are read, and picture files, for tests."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
#: The limits of the pixels as files of old and of new transformers say them.
QWEN_LIMITS: dict[str, dict[str, Any]] = {
    "legacy": {"min_pixels": 3136, "max_pixels": 50176},
    "new": {"size": {"shortest_edge": 3136, "longest_edge": 50176}},
}


def qwen_folder(folder: Path, limits: str = "new") -> Path:
    """Write the files of a Qwen2.5-VL, without weights."""
    config = {"model_type": "qwen2_5_vl", "image_token_id": 7, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **CLIP,
        **QWEN_LIMITS[limits],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def idefics_folder(folder: Path, *, splits: bool = True) -> Path:
    """Write the files of an Idefics3 with tiles of 56 x 56 pixels, without weights."""
    config = {
        "model_type": "idefics3",
        "image_token_id": 7,
        "scale_factor": 2,
        "vision_config": {"patch_size": 14},
    }
    (folder / "config.json").write_text(json.dumps(config))
    processor = {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 168},
        "max_image_size": {"longest_edge": 56},
        "do_image_splitting": splits,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Return a picture of random colours."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def file_of(picture: Image.Image, **how: Any) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG", **how)
    return file.getvalue()
