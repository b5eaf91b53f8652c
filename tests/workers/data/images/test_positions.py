"""Positions of sequences with images are transformers' own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from workers.data.images.positions import rope_positions
from workers.data.images.spans import ImageSpan
from workers.models.tiny_vision import build_tiny_vision


def span(offset: int, grid: tuple[int, int, int]) -> ImageSpan:
    return ImageSpan(offset=offset, length=grid[1] * grid[2] // 4, grid=grid, digest="")


@pytest.mark.parametrize(
    ("length", "spans"),
    [
        (5, []),
        (7, [span(1, (1, 4, 4))]),
        (30, [span(0, (1, 4, 10))]),
        (40, [span(3, (1, 8, 4)), span(12, (1, 4, 4)), span(20, (1, 2, 12))]),
    ],
)
def test_positions_equal_those_of_transformers(
    length: int, spans: list[ImageSpan], tmp_path: Path
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(build_tiny_vision(tmp_path / "model"))
    kinds = torch.zeros(1, length, dtype=torch.int)
    for each in spans:
        kinds[0, each.offset : each.offset + each.length] = 1
    ids = torch.full((1, length), 5)
    ids[kinds.bool()] = 66
    ids[0, -1] = 66  # sampled, and text
    grids = torch.tensor([each.grid for each in spans])
    wanted, _ = model.model.get_rope_index(ids, kinds, grids)
    found = rope_positions(length, spans, merge_size=2)
    assert np.array_equal(found, wanted[:, 0].numpy())


def test_an_image_of_two_by_two_tokens() -> None:
    found = rope_positions(7, [span(1, (1, 4, 4))], merge_size=2)
    assert found.tolist() == [[0, 1, 1, 1, 1, 3, 4], [0, 1, 1, 2, 2, 3, 4], [0, 1, 2, 1, 2, 3, 4]]
