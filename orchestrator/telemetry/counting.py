"""Write counts as a person reads them, in every message of the driver."""

from __future__ import annotations


def counted(number: float, noun: str) -> str:
    """Return `1 engine`, `2 engines`, `0.5 GPUs`.

    Args:
        number: of things, of any size; a fraction for shares of a device.
        noun: for one of them, such as "learner rank"; its plural takes an s.
    """
    shown = str(number) if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun}" if number == 1 else f"{shown} {noun}s"
