"""Count the squares in a picture: "<image>squares:" is answered by a digit from 1 to `most`.

Harder than a colour: size, place and colour of a square say nothing, and an answer takes the whole
picture. Runs in the driver and in `ballast data`. Scores nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from workers.data.images.decoding import png_of
from workers.tasks.colours import picture_table
from workers.tasks.tables import TaskTables, build_folder

CELLS = 4  # places for squares along each side of a picture
CELL = 14  # pixels
SQUARES = (8, 12)  # sides of a square, in pixels


def counting(
    *, most: int = 4, num_train: int = 1024, num_heldout: int = 64, seed: int = 0
) -> TaskTables:
    """Make pictures of 1 to `most` squares on a dark ground, in every number equally often.

    Args:
        most: largest number of squares, 2 to 9.
        num_train: rows of the train table.
        num_heldout: rows of the held-out table.
        seed: of pictures and order.

    Raises:
        ValueError: another `most`.
    """
    if not 2 <= most <= 9:
        raise ValueError(f"most={most} must be from 2 to 9: an answer is one digit")
    generator = np.random.default_rng(seed)
    return TaskTables(
        train=_table(generator, num_train, most), heldout=_table(generator, num_heldout, most)
    )


def build_counting(
    folder: str | Path | None = None,
    *,
    most: int = 4,
    num_train: int = 1024,
    num_heldout: int = 64,
    seed: int = 0,
) -> Path:
    """Write `counting(...)` under `folder` once, return the folder; see there for the rest."""
    arguments = {"most": most, "num_train": num_train, "num_heldout": num_heldout, "seed": seed}
    return build_folder(
        folder,
        {"task": "counting", **arguments},
        lambda: counting(most=most, num_train=num_train, num_heldout=num_heldout, seed=seed),
    )


def _table(generator: np.random.Generator, count: int, most: int) -> pa.Table:
    truths = [1 + place % most for place in generator.permutation(count).tolist()]
    files = [_picture(generator, truth) for truth in truths]
    return picture_table("counting", "<image>squares:", [str(truth) for truth in truths], files)


def _picture(generator: np.random.Generator, squares: int) -> bytes:
    side = CELLS * CELL
    pixels = generator.integers(0, 30, (side, side, 3)).astype(np.uint8)
    for cell in generator.permutation(CELLS * CELLS)[:squares].tolist():
        size = int(generator.integers(SQUARES[0], SQUARES[1] + 1))
        row, column = (part * CELL + 1 for part in divmod(cell, CELLS))
        pixels[row : row + size, column : column + size] = generator.integers(140, 256, 3)
    return png_of(pixels)
