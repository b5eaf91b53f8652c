"""How a section of the schema refuses a value: key, value, remedy."""

from __future__ import annotations


def require(condition: bool, key: str, value: object, remedy: str) -> None:
    """Raise a ValueError that names all three unless `condition` holds."""
    if not condition:
        raise ValueError(f"{key}={value!r}: {remedy}")


def choose(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    require(value in choices, key, value, f"must be one of {', '.join(choices)}")
