"""Families of vision-language models that packed batches support, and the reasons for others.

Runs in the ranks of learner, reference and critic, before a model is loaded, and in the driver's
checks. Loads no weights.
"""

import json
from pathlib import Path

from workers.data.images.settings import FAMILIES, ImageSettings, read_image_settings

#: Families that transformers loads for images alone, with the reason for the refusal.
REFUSED = {
    "qwen3_vl": "its decoder adds features of inner layers of the tower (deepstack)",
    "qwen3_vl_moe": "its decoder adds features of inner layers of the tower (deepstack)",
}


def model_type(folder: str | Path) -> str | None:
    """Return the `model_type` of a model folder's configuration."""
    found: str | None = json.loads((Path(folder) / "config.json").read_text()).get("model_type")
    return found


def supported_images(folder: str | Path) -> ImageSettings | None:
    """Return the settings of the pixels of a supported vision-language model; None for others.

    A model of another family may have a tower: without images it is a language model.

    Raises:
        ValueError: a family that cannot be computed at all.
    """
    kind = model_type(folder)
    if kind in REFUSED:
        raise ValueError(
            f"model {Path(folder).name} of type {kind} is not supported: {REFUSED[kind]}, which "
            f"packed batches do not carry; use a model of {' or '.join(FAMILIES)}"
        )
    return read_image_settings(folder, max_pixels=None) if kind in FAMILIES else None


def check_critic(folder: str | Path) -> None:
    """Raise ValueError for a vision-language model as critic."""
    if model_type(folder) in FAMILIES or model_type(folder) in REFUSED:
        raise ValueError(
            f"critic {Path(folder).name} is a vision-language model, and critics read no images: "
            "choose an algorithm without a critic, such as algorithm=cpgd"
        )
