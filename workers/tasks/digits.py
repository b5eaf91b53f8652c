"""Prompts that are a string of random digits and an equals sign; the answer is a function of it.

The shared part of `copy`, `sort` and `reverse`: tasks for models trained from random weights,
whose answer has as many tokens as the string has digits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from workers.tasks.tables import TaskTables, build_folder, text_table


def digit_strings(
    task: str,
    answer: Callable[[str], str],
    *,
    length: int,
    num_train: int,
    num_eval: int,
    seed: int,
) -> TaskTables:
    """Draws different strings of `length` digits and gives each its answer.

    Raises:
        ValueError: a count below one, or more strings asked than there are.
    """
    if min(length, num_train, num_eval) < 1:
        raise ValueError(
            "length, num_train and num_eval must be at least 1, got "
            f"{length}, {num_train} and {num_eval}"
        )
    if num_train + num_eval > 10**length:
        raise ValueError(
            f"num_train {num_train} and num_eval {num_eval} exceed the {10**length} strings "
            f"of length {length}: lower them or raise length"
        )
    numbers = random.Random(seed).sample(range(10**length), num_train + num_eval)
    strings = [f"{number:0{length}d}" for number in numbers]
    rows = [(f"{string}=", answer(string)) for string in strings]
    name = f"{task}_{length}"
    return TaskTables(
        train=text_table(name, rows[:num_train]), heldout=text_table(name, rows[num_train:])
    )


def build_digit_strings(
    folder: str | Path | None,
    task: str,
    answer: Callable[[str], str],
    *,
    length: int,
    num_train: int,
    num_eval: int,
    seed: int,
) -> Path:
    """Writes `digit_strings(...)` under `folder` once, returns where."""
    recipe = {
        "task": task,
        "length": length,
        "num_train": num_train,
        "num_eval": num_eval,
        "seed": seed,
    }
    return build_folder(
        folder,
        recipe,
        lambda: digit_strings(
            task, answer, length=length, num_train=num_train, num_eval=num_eval, seed=seed
        ),
    )
