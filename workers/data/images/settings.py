"""Settings by which a model's pixels are made, read from the files of its folder.

Read by the driver (checks), by rollout workers and by learner ranks, which all make the same pixels
from them. Decodes nothing, and reads no weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QWEN, IDEFICS = "qwen2_5_vl", "idefics3"
FAMILIES = (QWEN, IDEFICS)  # `model_type` in config.json

Grid = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLimits:
    """Limits of the images that prompts and environments may show.

    Example, at most 4 images of 256 x 28 x 28 pixels:
        ImageLimits(max_pixels=200704, max_per_prompt=4)

    Attributes:
        max_pixels: of one image, which is scaled down to them; None: the model's own limit.
        max_per_prompt: images of one row, those of later turns included.
    """

    max_pixels: int | None = None
    max_per_prompt: int = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSettings:
    """Settings of the pixels that a vision-language model takes.

    Example, of a Qwen2.5-VL that sees at most 256 x 28 x 28 pixels:
        ImageSettings(
            family="qwen2_5_vl",
            image_token_id=151655,
            patch_size=14,
            merge_size=2,
            min_pixels=3136,
            max_pixels=200704,
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
            rescale=0.00392156862745098,
            resample=3,
        )

    Attributes:
        family: "qwen2_5_vl" or "idefics3".
        image_token_id: token whose embedding an image's feature replaces.
        patch_size: side of a patch, in pixels.
        merge_size: a token stands for merge_size x merge_size patches.
        min_pixels, max_pixels: a picture is scaled to lie between them; Idefics3 knows no lower
            limit.
        mean, std: of the three colours, after scaling to 0..1.
        rescale: factor from 0..255 to 0..1.
        resample: filter of the resizing, as PIL numbers filters.
        tile: Idefics3 only, side of the square tiles that a picture is cut into, in pixels; 0 else.
        splits: Idefics3 only, False where a picture is one tile.
    """

    family: str
    image_token_id: int
    patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float
    resample: int
    tile: int = 0
    splits: bool = False

    def num_rows(self, grid: Grid) -> int:
        """Return the rows of an image's array of patches: Qwen's patches, Idefics3's tiles."""
        frames, height, width = grid
        return height * width + 1 if self.family == IDEFICS else frames * height * width

    def num_features(self, grid: Grid) -> int:
        """Return the tokens whose embedding is replaced by a feature of the image."""
        if self.family == IDEFICS:
            return self.num_rows(grid) * (self.tile // self.patch_size // self.merge_size) ** 2
        return self.num_rows(grid) // self.merge_size**2


def is_supported(folder: str | Path) -> bool:
    """Return True for a vision-language model of a family whose images are supported."""
    record = _read(Path(folder))
    return "vision_config" in record and record.get("model_type") in FAMILIES


def is_vision_model(folder: str | Path) -> bool:
    """Return True for a folder whose `config.json` describes a tower for images."""
    return "vision_config" in _read(Path(folder))


def read_image_settings(folder: str | Path, *, max_pixels: int | None) -> ImageSettings | None:
    """Read the settings of a model folder; None for a model that takes no images.

    Args:
        folder: with `config.json`, and `preprocessor_config.json` or `processor_config.json` in a
            new or an old form.
        max_pixels: limit of the pixels of one image; None takes the model's own.

    Raises:
        ValueError: a vision-language model of a family that is not supported, or a limit that is
            too small for one token.
    """
    record = _read(Path(folder))
    if "vision_config" not in record:
        return None
    family = record.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"{Path(folder).name} is a vision-language model of type {family!r}; images are "
            f"supported for {' and '.join(FAMILIES)}: use a model of one of these"
        )
    found = (_qwen if family == QWEN else _idefics)(Path(folder), record, max_pixels)
    smallest = max(found.tile, found.patch_size * found.merge_size) ** 2
    if found.max_pixels < max(smallest, found.min_pixels):
        raise ValueError(
            f"data.images.max_pixels={max_pixels} is below the smallest image of this model; "
            f"give at least {max(smallest, found.min_pixels)}"
        )
    return found


def _read(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "config.json").read_text())
    return dict(found)


def _colours(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _qwen(folder: Path, record: dict[str, Any], max_pixels: int | None) -> ImageSettings:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil.from_pretrained(str(folder))
    return ImageSettings(
        family=QWEN,
        image_token_id=int(record["image_token_id"]),
        patch_size=int(processor.patch_size),
        merge_size=int(processor.merge_size),
        min_pixels=int(processor.size["shortest_edge"]),
        max_pixels=int(max_pixels or processor.size["longest_edge"]),
        mean=_colours(processor.image_mean),
        std=_colours(processor.image_std),
        rescale=float(processor.rescale_factor),
        resample=int(processor.resample),
    )


def _idefics(folder: Path, record: dict[str, Any], max_pixels: int | None) -> ImageSettings:
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )

    processor = Idefics3ImageProcessorPil.from_pretrained(str(folder))
    tile, longest = processor.max_image_size["longest_edge"], processor.size["longest_edge"]
    if max_pixels is not None:  # whole tiles, so that no picture grows beyond the limit
        longest = min(longest, math.isqrt(max_pixels) // tile * tile)
    return ImageSettings(
        family=IDEFICS,
        image_token_id=int(record["image_token_id"]),
        patch_size=int(record["vision_config"]["patch_size"]),
        merge_size=int(record["scale_factor"]),
        min_pixels=0,
        max_pixels=int(longest) ** 2,
        mean=_colours(processor.image_mean),
        std=_colours(processor.image_std),
        rescale=float(processor.rescale_factor),
        resample=int(processor.resample),
        tile=int(tile),
        splits=bool(processor.do_image_splitting),
    )
