"""String of random digits and an equals sign: "3142=" is answered by its copy, reverse or sort.

Tasks for models trained from random weights: the answer has as many tokens as the string has
digits. Train and held-out strings are disjoint. Runs in the driver and in `ballast data`. Scores
nothing: choose a reward by positions (dense) or by exact match.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from workers.tasks.tables import TaskTables, build_folder, text_table

ANSWERS: dict[str, Callable[[str], str]] = {
    "copy": lambda string: string,
    "reverse": lambda string: string[::-1],
    "sort": lambda string: "".join(sorted(string)),
}


def digit_strings(
    task: str, *, length: int = 4, num_train: int = 4096, num_eval: int = 128, seed: int = 0
) -> TaskTables:
    """Draw different strings of `length` digits and give each its answer.

    Args:
        task: copy, reverse or sort.
        length: digits of a string.
        num_train: prompts to train on.
        num_eval: prompts held out.
        seed: of the draw.

    Raises:
        ValueError: an unknown task, a count below one, or more strings asked than there are.
    """
    if task not in ANSWERS:
        raise ValueError(f"task {task!r} is unknown: choose one of {', '.join(ANSWERS)}")
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
    rows = [(f"{string}=", ANSWERS[task](string)) for string in strings]
    name = f"{task}_{length}"
    return TaskTables(
        train=text_table(name, rows[:num_train]), heldout=text_table(name, rows[num_train:])
    )


def build_digits(
    folder: str | Path | None = None,
    *,
    task: str,
    length: int = 4,
    num_train: int = 4096,
    num_eval: int = 128,
    seed: int = 0,
) -> Path:
    """Write `digit_strings(...)` under `folder` once, return the folder; see there for the rest."""
    sizes = {"length": length, "num_train": num_train, "num_eval": num_eval, "seed": seed}
    return build_folder(folder, {"task": task, **sizes}, lambda: digit_strings(task, **sizes))
