"""Write digits backwards: "3142=" is answered by "2413".

Train and held-out strings are disjoint. Score it by positions (dense) or by exact match.
"""

from __future__ import annotations

from pathlib import Path

from workers.tasks.digits import build_digit_strings, digit_strings
from workers.tasks.tables import TaskTables


def answer(string: str) -> str:
    """Returns the digits backwards."""
    return string[::-1]


def reverse_digits(
    *, length: int = 4, num_train: int = 4096, num_eval: int = 128, seed: int = 0
) -> TaskTables:
    """Makes `num_train` and `num_eval` different strings of `length` digits."""
    return digit_strings(
        "reverse", answer, length=length, num_train=num_train, num_eval=num_eval, seed=seed
    )


def build_reverse(
    folder: str | Path | None = None,
    *,
    length: int = 4,
    num_train: int = 4096,
    num_eval: int = 128,
    seed: int = 0,
) -> Path:
    """Writes `reverse_digits(...)` under `folder` once, returns where; see there for the rest."""
    return build_digit_strings(
        folder, "reverse", answer, length=length, num_train=num_train, num_eval=num_eval, seed=seed
    )
