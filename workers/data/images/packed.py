"""Lay the images of a micro-batch beside its tokens: `PackedImages`.

Learner and reference ranks run this module where they pack rows. An image that several rows show is
held once. The places of features come from the spans of the prompts, never from token ids alone.
The module knows no model and decodes no file.

Legend: N tokens of a packed batch, I different images, F features of all of them together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers.data.images.positions import rope_positions
from workers.data.images.settings import QWEN, Grid, ImageSettings
from workers.data.images.spans import ImageSpan

#: Number of the feature at a token of text.
TEXT = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class RowImages:
    """Images of the rows that are packed, and the way to their pixels.

    Example, two rows of which the first shows an image of 4 x 4 patches behind two tokens:
        RowImages(
            spans=[[ImageSpan(offset=2, length=4, grid=(1, 4, 4), digest="9f86...")], []],
            settings=settings,
            patches_of={"9f86...": patches}.__getitem__,
        )

    Attributes:
        spans: images of each row.
        settings: of the model.
        patches_of: digest -> uint8 patches, as `workers.data.images.patches_of` returns them.
    """

    spans: Sequence[Sequence[ImageSpan]]
    settings: ImageSettings
    patches_of: Callable[[str], npt.NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedImages:
    """Images of a packed batch.

    Worked example, two sequences `[5 9 9 9 9 6]` and `[5 9 9 9 9 7]` (9 is the image token) that
    show the same image of 4 x 4 patches, N = 12 tokens:
        digests   ("9f86d081...",)      grids  ((1, 4, 4),)
        patches   [16, 1176] uint8
        features  [-1 0 1 2 3 -1 -1 0 1 2 3 -1]
        positions [3, 12]

    Attributes:
        digests: of the I different images, in the order of their pixels.
        grids: of each.
        patches: their pixels end to end, uint8; [P, 1176] for Qwen2.5-VL with patches of 14 pixels,
            [T, 3, tile, tile] for Idefics3.
        features: [N] int64, the feature that stands at each token; `TEXT` for text.
        positions: [3, N] int64, for models with rotary embeddings of three axes; None for others.
    """

    digests: tuple[str, ...]
    grids: tuple[Grid, ...]
    patches: Tensor
    features: Tensor
    positions: Tensor | None

    def to(self, device: torch.device | str) -> "PackedImages":
        """Return the images on `device`."""
        positions = self.positions
        return replace(
            self,
            patches=self.patches.to(device, non_blocking=True),
            features=self.features.to(device, non_blocking=True),
            positions=None if positions is None else positions.to(device, non_blocking=True),
        )


def pack_images(
    tokens: npt.NDArray[np.generic],  # [N]
    ends: npt.NDArray[np.int64],  # [S+1]
    images: RowImages,
) -> PackedImages | None:
    """Lay out the images of a batch; None where no row shows one.

    Args:
        tokens: of all rows, end to end.
        ends: the start of each row; the last element is N.
        images: of the same rows.

    Raises:
        ValueError: a span has another number of image tokens than its grid has features, or the
            pixels have another grid than the span.
    """
    if not any(images.spans):
        return None
    settings = images.settings
    features = np.full(len(tokens), TEXT, dtype=np.int64)
    first: dict[str, int] = {}  # the first feature of each different image
    grids: list[Grid] = []
    total = 0
    for row, spans in enumerate(images.spans):
        for span in spans:
            count = settings.num_features(span.grid)
            if span.digest not in first:
                first[span.digest] = total
                grids.append(span.grid)
                total += count
            begin = int(ends[row]) + span.offset
            stop = min(begin + span.length, int(ends[row + 1]))
            places = begin + np.flatnonzero(tokens[begin:stop] == settings.image_token_id)
            if len(places) != count:
                raise ValueError(
                    f"row {row} has {len(places)} image tokens from its token {span.offset} on, "
                    f"and its image of grid {span.grid} has {count} features: the row was cut "
                    "inside an image, or was written with other image settings"
                )
            features[places] = first[span.digest] + np.arange(count)
    pixels = [_checked(images, digest, grid) for digest, grid in zip(first, grids, strict=True)]
    return PackedImages(
        digests=tuple(first),
        grids=tuple(grids),
        patches=torch.from_numpy(np.concatenate(pixels)),
        features=torch.from_numpy(features),
        positions=_positions(ends, images) if settings.family == QWEN else None,
    )


def identities(
    tokens: npt.NDArray[np.generic],  # [N]
    images: PackedImages | None,
) -> npt.NDArray[np.int64]:
    """Return numbers [N] that are equal where a model reads the same: a token, or a feature."""
    ids = tokens.astype(np.int64)
    if images is None:
        return ids
    features = images.features.numpy()
    return np.where(features == TEXT, ids, -1 - features)


def _checked(images: RowImages, digest: str, grid: Grid) -> npt.NDArray[np.uint8]:
    patches, wanted = images.patches_of(digest), images.settings.num_rows(grid)
    if len(patches) != wanted:
        raise ValueError(
            f"image {digest[:12]} has {len(patches)} rows of patches and its grid {grid} has "
            f"{wanted}: set data.images.max_pixels to that of the run that wrote the row"
        )
    return patches


def _positions(ends: npt.NDArray[np.int64], images: RowImages) -> Tensor:
    merge_size = images.settings.merge_size
    parts = [
        rope_positions(int(length), spans, merge_size=merge_size)
        for length, spans in zip(np.diff(ends), images.spans, strict=True)
    ]
    return torch.from_numpy(np.concatenate(parts, axis=1))
