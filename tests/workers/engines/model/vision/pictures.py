"""Rows with images for tiny vision-language models, as a rollout worker writes them."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from workers.data.images import (
    ImageSettings,
    ImageSpan,
    digest_of,
    patches_of,
    read_image_settings,
)
from workers.data.images.packed import RowImages


def png(width: int, height: int, seed: int) -> bytes:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def settings_of(folder: Path) -> ImageSettings:
    """Settings of a tiny model, which takes images."""
    found = read_image_settings(folder, max_pixels=None)
    assert found is not None
    return found


@dataclass
class Rows:
    """Rows of text and images, built piece by piece: a list of ids is text, bytes are an image."""

    settings: ImageSettings
    tokens: list[list[int]] = field(default_factory=list)
    spans: list[list[ImageSpan]] = field(default_factory=list)
    patches: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, *pieces: list[int] | bytes) -> None:
        """Append a row."""
        tokens: list[int] = []
        spans = []
        for piece in pieces:
            if isinstance(piece, bytes):
                digest = digest_of(piece, self.settings)
                self.patches[digest], grid = patches_of(piece, self.settings)
                length = self.settings.num_features(grid)
                spans.append(ImageSpan(offset=len(tokens), length=length, grid=grid, digest=digest))
                tokens += [self.settings.image_token_id] * length
            else:
                tokens += piece
        self.tokens.append(tokens)
        self.spans.append(spans)

    @property
    def images(self) -> RowImages:
        """All rows' images."""
        patches: Mapping[str, np.ndarray] = self.patches
        return RowImages(spans=self.spans, settings=self.settings, patches_of=patches.__getitem__)


def mixed_rows(settings: ImageSettings) -> Rows:
    """Seven rows: no image, one, two, siblings, and sampled image tokens.

    Rows 4 and 5 are siblings behind the picture of row 1, rows 5 and 6 sampled an image token.
    """
    rows = Rows(settings)
    small, wide, tall = png(56, 56, 1), png(140, 56, 2), png(56, 112, 3)
    sampled = settings.image_token_id
    rows.add([5, 6, 7, 8, 9, 10])
    rows.add([5, 6], small, [7, 8, 9])
    rows.add([11], wide, [6, 7], tall, [8, 9, 12])
    rows.add([4, 5], tall, [16], small, [13, 14, 15])
    rows.add([5, 6], small, [20, 21])
    rows.add([5, 6], small, [20, sampled, 22, 23])
    rows.add([17, sampled, 18])
    return rows
