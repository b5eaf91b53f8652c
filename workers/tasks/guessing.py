"""Guess a number by its bounds: "0-2?" hides a digit, and the environment answers "<" or ">".

Prompts for `environment=guessing`: the ground truth is the hidden number, and every prompt of one
range reads the same, so nothing but the turns tells rows apart. All numbers are equally frequent in
both tables, and the held-out prompts are none that training lacks. Runs in the driver and in
`ballast data`. Scores nothing: the environment gives the reward.
"""

from __future__ import annotations

import random
from pathlib import Path

from workers.models.tokenizer import EOS
from workers.tasks.tables import TaskTables, build_folder, text_table


def hidden_numbers(
    *, low: int = 0, high: int = 2, num_train: int = 4096, num_eval: int = 60, seed: int = 0
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
    high: int = 2,
    num_train: int = 4096,
    num_eval: int = 60,
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


def random_games(
    *, low: int = 0, high: int = 2, max_turns: int = 2, num_train: int = 4096, seed: int = 0
) -> TaskTables:
    """Make prompts from games of random digits, for a warm start: the form of play without its aim.

    A prompt is a game so far, the ends of turns written out; its ground truth is any digit, inside
    the range or not. The held-out table is a copy of the first row, which nothing reads.
    """
    generator = random.Random(seed)
    rows = []
    for _ in range(num_train):
        hidden, text = generator.randint(low, high), f"{low}-{high}?"
        for _ in range(generator.randrange(max_turns)):
            guess = generator.randrange(10)
            if guess != hidden:
                text += f"{guess}{EOS}{'<' if guess > hidden else '>'}"
        rows.append((text, str(generator.randrange(10))))
    name = f"random_games_{low}_{high}"
    return TaskTables(train=text_table(name, rows), heldout=text_table(name, rows[:1]))


def build_random_games(
    folder: str | Path | None = None,
    *,
    low: int = 0,
    high: int = 2,
    max_turns: int = 2,
    num_train: int = 4096,
    seed: int = 0,
) -> Path:
    """Write `random_games(...)` under `folder` once, return the folder."""
    sizes = {
        "low": low,
        "high": high,
        "max_turns": max_turns,
        "num_train": num_train,
        "seed": seed,
    }
    return build_folder(folder, {"task": "random_games", **sizes}, lambda: random_games(**sizes))
