"""Name the colour of a picture: "<image>colour:" is answered by r, g, b or y.

The smallest task that cannot be done without looking; its pictures are noise around one colour, so
no two files are equal. With blank pictures the best policy guesses, which shows that a run learned
from pixels and not from anything else. Runs in the driver and in `ballast data`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from workers.data.images.decoding import png_of
from workers.tasks.tables import TaskTables, build_folder

COLOURS = {"r": (220, 40, 40), "g": (40, 200, 60), "b": (50, 70, 220), "y": (230, 210, 50)}
BLANK = (128, 128, 128)
SIDE = 56  # pixels: 4 tokens of Qwen2.5-VL
NOISE = 25.0  # standard deviation of each pixel, of 255


def colours(
    *, num_train: int = 512, num_heldout: int = 64, blank: bool = False, seed: int = 0
) -> TaskTables:
    """Make pictures of equally many of each colour, in shuffled order.

    Args:
        num_train: rows of the train table, a multiple of 4.
        num_heldout: rows of the held-out table, a multiple of 4.
        blank: True for pictures of no colour, whose answers are as before: the control.
        seed: of noise and order.

    Raises:
        ValueError: a number of rows that is no positive multiple of 4.
    """
    for name, rows in (("num_train", num_train), ("num_heldout", num_heldout)):
        if rows < 1 or rows % len(COLOURS):
            raise ValueError(f"{name}={rows} must be a positive multiple of {len(COLOURS)}")
    generator = np.random.default_rng(seed)
    return TaskTables(
        train=_table(generator, num_train, blank), heldout=_table(generator, num_heldout, blank)
    )


def build_colours(
    folder: str | Path | None = None,
    *,
    num_train: int = 512,
    num_heldout: int = 64,
    blank: bool = False,
    seed: int = 0,
) -> Path:
    """Write `colours(...)` under `folder` once, return the folder; see there for the rest."""
    arguments = {"num_train": num_train, "num_heldout": num_heldout, "blank": blank, "seed": seed}
    return build_folder(
        folder,
        {"task": "colours", **arguments},
        lambda: colours(num_train=num_train, num_heldout=num_heldout, blank=blank, seed=seed),
    )


def picture_table(
    dataset: str, prompt: str, truths: Sequence[str], files: Sequence[bytes]
) -> pa.Table:
    """Make a table of one prompt for many pictures, the files in the column `image`."""
    count = len(truths)
    return pa.table(
        {
            "prompt": pa.array([prompt] * count, pa.string()),
            "ground_truth": pa.array(truths, pa.string()),
            "dataset": pa.array([dataset] * count, pa.string()),
            "image": pa.array(files, pa.binary()),
        }
    )


def _table(generator: np.random.Generator, count: int, blank: bool) -> pa.Table:
    names = list(COLOURS) * (count // len(COLOURS))
    truths = [names[place] for place in generator.permutation(count)]
    files = []
    for truth in truths:
        middle = BLANK if blank else COLOURS[truth]
        noise = generator.normal(0.0, NOISE, (SIDE, SIDE, 3))
        files.append(png_of(np.clip(np.array(middle) + noise, 0, 255).astype(np.uint8)))
    return picture_table("blank" if blank else "colours", "<image>colour:", truths, files)
