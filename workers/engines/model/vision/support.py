"""Families of vision-language models that packed batches support, and the reasons for others.

Runs in the ranks of learner, reference and critic, before a model is loaded, and in the driver's
checks. Loads no weights.
"""

import json
from collections.abc import Collection
from pathlib import Path

from workers.data.images.settings import (
    FAMILIES,
    ImageSettings,
    is_vision_model,
    read_image_settings,
)

DEEPSTACK = (
    "its decoder adds features of inner layers of the tower (deepstack), which packed batches do "
    "not carry"
)
#: Families with a reason of their own for the refusal.
REFUSED = {
    "qwen3_vl": DEEPSTACK,
    "qwen3_vl_moe": DEEPSTACK,
    "smolvlm": "its processor, which vLLM asks for, needs the package num2words",
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
    if kind in FAMILIES:
        return read_image_settings(folder, max_pixels=None)
    if kind in REFUSED or (is_vision_model(folder) and kind not in _language_models()):
        reason = REFUSED.get(kind or "", "transformers has no language model of this type alone")
        raise ValueError(
            f"model {Path(folder).name} of type {kind} is not supported: {reason}; "
            f"use a model of {' or '.join(FAMILIES)}"
        )
    return None


def _language_models() -> Collection[str]:
    """Return the types that transformers loads as language models, towers left unused."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()


def check_critic(folder: str | Path) -> None:
    """Raise ValueError for a vision-language model as critic."""
    if is_vision_model(folder) and model_type(folder) not in _language_models():
        raise ValueError(
            f"critic {Path(folder).name} is a vision-language model, and critics read no images: "
            "choose an algorithm without a critic, such as algorithm=cpgd"
        )
