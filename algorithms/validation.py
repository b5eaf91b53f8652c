"""Checks that parts run on their own fields: a ValueError names the value and the remedy.

Runs wherever a part is built. Checks of how parts fit together are in
:mod:`algorithms.composition`.
"""

import math
from collections.abc import Collection

from torch import Tensor


def check_number(name: str, value: object) -> None:
    """Raise ValueError on a value that is no int or float; YAML and overrides can yield text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            f"{name}={value!r} is no number; write it as 0.2 or 1e-4, and infinity as inf on the "
            "command line or .inf in YAML"
        )


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Raise ValueError unless `value >= minimum` (NaN raises too)."""
    check_number(name, value)
    if not value >= minimum:
        raise ValueError(f"{name}={value} is below {minimum}; set {name} to {minimum} or more")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless `value > 0`."""
    check_number(name, value)
    if not value > 0:
        raise ValueError(f"{name}={value} is not positive; set {name} above 0")


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless `0 <= value <= 1`."""
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} is outside [0, 1]; choose a value inside")


def check_finite(name: str, value: float) -> None:
    """Raise ValueError on NaN and infinity."""
    check_number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name}={value} is not finite; choose a finite number")


def check_ordered(low_name: str, low: float, high_name: str, high: float) -> None:
    """Raise ValueError unless `low < high`."""
    check_number(low_name, low)
    check_number(high_name, high)
    if not low < high:
        raise ValueError(
            f"{low_name}={low} is not below {high_name}={high}; give the bounds in order"
        )


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(sorted(choices))}")


def present(name: str, column: Tensor | None) -> Tensor:
    """Return the column, or raise ValueError: a column was declared and never filled in."""
    if column is None:
        raise ValueError(
            f"column {name!r} is None; fill it in, or choose parts whose `columns` do not name it"
        )
    return column
