"""Guess a number by its bounds: "0-6?" hides a digit, and the environment answers "<" or ">".

Prompts for `environment=guessing`: the ground truth is the hidden number, and every prompt of one
range reads the same, so nothing but the turns tells rows apart. All numbers are equally frequent in
both tables, and the held-out prompts are none that training lacks. Runs in the driver and in
`ballast data`. Scores nothing: the environment gives the reward.
"""

from __future__ import annotations

import random
from pathlib import Path

from workers.tasks.tables import TaskTables, build_folder, text_table


def hidden_numbers(
    *, low: int = 0, high: int = 6, num_train: int = 4096, num_eval: int = 70, seed: int = 0
) -> TaskTables:
    """Make prompts that hide each number of the range equally often.

    Args:
        low: smallest number.
        high: greatest number.
        num_train: prompts to train on.
        num_eval: prompts for evaluation.
        seed: of the order.

    Raises:
        ValueError: no number between the bounds, or a count below one.
    """
    if not 0 <= low < high:
        raise ValueError(f"low={low} and high={high} hold no range of numbers; set 0 <= low < high")
    if min(num_train, num_eval) < 1:
        raise ValueError(
            f"num_train and num_eval must be at least 1, got {num_train} and {num_eval}"
        )
    numbers = range(low, high + 1)
    prompt, generator = f"{low}-{high}?", random.Random(seed)
    tables = []
    for count in (num_train, num_eval):
        rows = [(prompt, str(numbers[k % len(numbers)])) for k in range(count)]
        generator.shuffle(rows)
        tables.append(text_table(f"guessing_{low}_{high}", rows))
    return TaskTables(train=tables[0], heldout=tables[1])


def build_guessing(
    folder: str | Path | None = None,
    *,
    low: int = 0,
    high: int = 6,
    num_train: int = 4096,
    num_eval: int = 70,
    seed: int = 0,
) -> Path:
    """Write `hidden_numbers(...)` under `folder` once, return the folder."""
    sizes = {
        "low": low,
        "high": high,
        "num_train": num_train,
        "num_eval": num_eval,
        "seed": seed,
    }
    return build_folder(folder, {"task": "guessing", **sizes}, lambda: hidden_numbers(**sizes))
