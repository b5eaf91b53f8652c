"""Refusal of a value by a section of the schema: key, value, remedy.

Runs in the driver. Changes no value.
"""

from __future__ import annotations


def require(condition: bool, key: str, value: object, remedy: str) -> None:
    """Raise a ValueError that names key, value and remedy unless `condition` holds."""
    if not condition:
        raise ValueError(f"{key}={value!r}: {remedy}")


def choose(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    require(value in choices, key, value, f"must be one of {', '.join(choices)}")
