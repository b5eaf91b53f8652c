"""Make the pixels of an image as its model takes them, before normalisation: bytes, not floats.

The processors of transformers do the work, on PIL, whatever else is installed: resizing by another
library gives other pixels. Patches are kept as integers 0..255 (a quarter of float32); normalised
later, patches equal the processor's output to the bit. Runs in rollout workers and learner ranks.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import astuple
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.data.images.decoding import decode
from workers.data.images.settings import IDEFICS, Grid, ImageSettings


def digest_of(file_bytes: bytes, settings: ImageSettings) -> str:
    """Return the SHA-256 of a file and the settings: equal digests mean equal pixels."""
    total = hashlib.sha256(repr(astuple(settings)).encode())
    total.update(file_bytes)
    return total.hexdigest()


def patches_of(file_bytes: bytes, settings: ImageSettings) -> tuple[npt.NDArray[np.uint8], Grid]:
    """Return the pixels of an image file, and their grid.

    Qwen2.5-VL: patches [t * h * w, 3 * 2 * patch_size^2] of the grid (t, h, w), t = 1.
    Idefics3: tiles [rows * columns + 1, 3, tile, tile] of the grid (1, rows, columns), the last one
    the whole picture; a picture of one tile has the grid (1, 0, 0).

    Raises:
        ImageFaultError: the bytes are no picture that can be used.
    """
    picture = decode(file_bytes)
    as_bytes = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    if settings.family == IDEFICS:
        found = _idefics()(
            [[picture]],
            size={"longest_edge": math.isqrt(settings.max_pixels)},
            max_image_size={"longest_edge": settings.tile},
            do_image_splitting=settings.splits,
            resample=settings.resample,
            return_row_col_info=True,
            **as_bytes,
        )
        grid = (1, int(found["rows"][0][0]), int(found["cols"][0][0]))
        return found["pixel_values"][0].astype(np.uint8), grid
    found = _qwen()(
        [picture],
        size={"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels},
        patch_size=settings.patch_size,
        merge_size=settings.merge_size,
        resample=settings.resample,
        **as_bytes,
    )
    frames, height, width = (int(value) for value in found["image_grid_thw"][0])
    return found["pixel_values"].astype(np.uint8), (frames, height, width)


def normalised(patches: npt.NDArray[np.uint8], settings: ImageSettings) -> npt.NDArray[np.float32]:
    """Return patches as the model's tower takes them, in the same shape, channel after channel.

    The order of operations and types is the processors' own, so that no bit differs.
    """
    scaled = (patches.astype(np.float64) * settings.rescale).astype(np.float32)
    by_channel = scaled.reshape(len(patches), 3, -1)
    mean = np.array(settings.mean, np.float32)[:, None]
    std = np.array(settings.std, np.float32)[:, None]
    return ((by_channel - mean) / std).reshape(patches.shape)


@lru_cache(maxsize=1)
def _qwen() -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil()


@lru_cache(maxsize=1)
def _idefics() -> Any:
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )

    return Idefics3ImageProcessorPil()
