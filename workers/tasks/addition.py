"""Addition as plain text after two solved examples: "2+3=5", "4+1=5", "a+b=".

The examples make it a task that a small pretrained model solves now and then; as a chat message, a
135M model never does. Runs in the driver and in `ballast data`. Scores nothing: the reward is an
exact match of the first line of the response.
"""

from __future__ import annotations

import random
from pathlib import Path

from workers.tasks.tables import TaskTables, build_folder, text_table

# By digits of the summands: a model that adds single digits does not see what is wanted of two.
SHOT_PAIRS = {
    1: ((2, 3), (4, 1)),
    2: ((12, 34), (50, 27)),
    3: ((123, 456), (501, 270)),
}


def addition(
    *, digits: int = 1, heldout_frac: float = 0.3, max_heldout: int = 128, seed: int = 0
) -> TaskTables:
    """Make prompts for all ordered pairs of numbers with so many digits, in shuffled order.

    Single digits give 100 pairs, two digits (10 to 99) give 8100. Pairs solved in the prompt are
    never held out.

    Args:
        digits: digits of each summand, 1 to 3.
        heldout_frac: fraction of all pairs kept from training, in (0, 1).
        max_heldout: most rows of the held-out table; the rest of the fraction is not used at all.
        seed: of the split and the order.

    Raises:
        ValueError: another number of digits, or a fraction or a limit out of its range.
    """
    if digits not in SHOT_PAIRS:
        raise ValueError(f"digits must be 1, 2 or 3, got {digits}")
    if not 0 < heldout_frac < 1 or max_heldout < 1:
        raise ValueError(
            f"heldout_frac must lie in (0, 1) and max_heldout be at least 1, got {heldout_frac} "
            f"and {max_heldout}"
        )
    numbers = range(10) if digits == 1 else range(10 ** (digits - 1), 10**digits)
    pairs = [(a, b) for a in numbers for b in numbers]
    random.Random(seed).shuffle(pairs)
    num_heldout = round(len(pairs) * heldout_frac)
    heldout = [pair for pair in pairs if pair not in SHOT_PAIRS[digits]][:num_heldout]
    kept_back = set(heldout)
    train = [pair for pair in pairs if pair not in kept_back]
    name = f"addition_{digits}"
    return TaskTables(
        train=text_table(name, [_row(digits, a, b) for a, b in train]),
        heldout=text_table(name, [_row(digits, a, b) for a, b in heldout[:max_heldout]]),
    )


def build_addition(
    folder: str | Path | None = None,
    *,
    digits: int = 1,
    heldout_frac: float = 0.3,
    max_heldout: int = 128,
    seed: int = 0,
) -> Path:
    """Write `addition(...)` under `folder` once, return the folder; see there for the rest."""
    arguments = {
        "digits": digits,
        "heldout_frac": heldout_frac,
        "max_heldout": max_heldout,
        "seed": seed,
    }
    return build_folder(
        folder,
        {"task": "addition", "shots": shots(digits), **arguments},
        lambda: addition(
            digits=digits, heldout_frac=heldout_frac, max_heldout=max_heldout, seed=seed
        ),
    )


def shots(digits: int) -> str:
    """Return the solved examples that open every prompt."""
    pairs = SHOT_PAIRS.get(digits, ())
    return "".join(f"{a}+{b}={a + b}\n" for a, b in pairs)


def _row(digits: int, a: int, b: int) -> tuple[str, str]:
    return f"{shots(digits)}{a}+{b}=", str(a + b)
