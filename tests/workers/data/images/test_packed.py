"""Images of a micro-batch: pixels once, features where the spans say."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from workers.data.images.packed import PackedImages, RowImages
from workers.data.images.settings import ImageSettings
from workers.data.images.spans import ImageSpan
from workers.data.packing import PackedBatch, pack

IMAGE = 9
SETTINGS = ImageSettings(
    family="qwen2_5_vl",
    image_token_id=IMAGE,
    patch_size=14,
    merge_size=2,
    min_pixels=3136,
    max_pixels=50176,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    rescale=1 / 255,
    resample=3,
)
PATCHES = {
    "one": np.full((16, 1176), 1, dtype=np.uint8),
    "two": np.full((4, 1176), 2, dtype=np.uint8),
}
ONE = ImageSpan(offset=1, length=4, grid=(1, 4, 4), digest="one")
TWO = ImageSpan(offset=2, length=1, grid=(1, 2, 2), digest="two")
TOKENS = [[5, 9, 9, 9, 9, 6], [5, 9, 9, 9, 9, 7, 9], [4, 4], [5, 5, 9, 8]]
IMAGES = RowImages(
    spans=[[ONE], [ONE], [], [TWO]], settings=SETTINGS, patches_of=PATCHES.__getitem__
)


def packed(
    rows: list[int] | None = None,
    *,
    images: RowImages = IMAGES,
    tokens: list[list[int]] = TOKENS,
    groups: list[int] | None = None,
) -> PackedBatch:
    columns = {"tokens": pa.array(tokens, pa.list_(pa.int32()))}
    return pack(columns, rows, groups=groups, images=images)


def images_of(batch: PackedBatch) -> PackedImages:
    assert batch.images is not None
    return batch.images


def test_pixels_are_held_once_and_a_sampled_image_token_is_text() -> None:
    images = images_of(packed())
    assert images.digests == ("one", "two")
    assert images.patches.shape == (20, 1176)
    assert images.features.tolist() == [
        *[-1, 0, 1, 2, 3, -1],
        *[-1, 0, 1, 2, 3, -1, -1],  # the last one was sampled
        *[-1, -1],
        *[-1, -1, 4, -1],
    ]
    assert images.positions is not None
    assert images.positions[0].tolist() == [0, 1, 1, 1, 1, 3, 0, 1, 1, 1, 1, 3, 4, 0, 1, 0, 1, 2, 3]


def test_rows_without_images_and_fillers_hold_none() -> None:
    assert packed([2]).images is None
    assert packed([]).images is None
    assert images_of(packed([3, 2])).features.tolist() == [-1, -1, 0, -1, -1, -1]


def test_siblings_share_the_picture_and_not_one_of_another_digest() -> None:
    shared = packed([0, 1], groups=[0, 0, 1, 1]).prefixes
    assert shared is not None
    assert shared.cu_prefixes.tolist() == [0, 5]
    other = replace(IMAGES, spans=[[ONE], [replace(ONE, digest="other")], [], []])
    other = replace(other, patches_of=lambda digest: PATCHES["one"])
    apart = packed([0, 1], groups=[0, 0, 1, 1], images=other).prefixes
    assert apart is not None
    assert apart.cu_prefixes.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("tokens", "patches", "message"),
    [
        ([[5, 9, 9, 9]], PATCHES["one"], "row 0 has 3 image tokens from its token 1 on"),
        ([[5, 9, 9, 9, 9]], PATCHES["two"], "image one has 4 rows of patches and its grid"),
    ],
)
def test_a_cut_image_and_pixels_of_another_size_are_refused(
    tokens: list[list[int]], patches: np.ndarray, message: str
) -> None:
    images = replace(IMAGES, spans=[[ONE]], patches_of=lambda digest: patches)
    with pytest.raises(ValueError, match=message):
        packed(images=images, tokens=tokens)
