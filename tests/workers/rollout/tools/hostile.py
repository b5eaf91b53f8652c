"""Tools for tests: each function here does one thing that a tool may do to its process."""

from __future__ import annotations

import os
import signal
import time


def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: the first number,
            or the only one.
        b: the second.
    """
    return a + b


def sleep(seconds: float) -> str:
    """Sleep.

    Args:
        seconds: to sleep.
    """
    time.sleep(seconds)
    return f"slept in process {os.getpid()}"


def die() -> str:
    """End the process without a word."""
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


def leave() -> str:
    """Ask the interpreter to exit."""
    raise SystemExit(3)


def flood() -> str:
    """Return five megabytes and print as many."""
    print("x" * 5_000_000)
    return "é" * 2_500_000


def divide(a: float) -> float:
    """Divide one by a number.

    Args:
        a: the number.
    """
    return 1 / a


def describe(names: list[str], deep: bool = False) -> dict[str, object]:
    """Describe names.

    Args:
        names: of things.
        deep: True for more.
    """
    return {"names": names, "deep": deep}


def hungry() -> int:
    """Take eight gigabytes."""
    return len(bytearray(8 << 30))


def untyped(a) -> int:
    """Miss a type hint."""
    return int(a)


def silent(a: int) -> int:
    return a
