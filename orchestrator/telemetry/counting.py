"""Write counts as a person reads them, in every message of the driver."""

from __future__ import annotations

from collections import Counter

MAX_EXAMPLE_CHARS = 160


def counted(number: float, noun: str) -> str:
    """Return `1 engine`, `2 engines`, `0.5 GPUs`.

    Args:
        number: of things, of any size; a fraction for shares of a device.
        noun: for one of them, such as "learner rank"; its plural takes an s.
    """
    shown = str(number) if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun}" if number == 1 else f"{shown} {noun}s"


def describe_reasons(counted: Counter[str]) -> str:
    """Return reasons by kind, each with its count and one example: no line per value.

    A kind is what stands before the second colon: the outcome and, of an error, its type.

    Example: Counter({"failed:KeyError: 'a'": 3, "failed:KeyError: 'b'": 1, "failed:timeout": 2})
    gives "4 x failed:KeyError ('a'), 2 x failed:timeout".
    """
    kinds: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for reason, count in counted.most_common():
        kind, _, detail = reason.partition(": ")
        kinds[kind] += count
        examples.setdefault(kind, detail[:MAX_EXAMPLE_CHARS])
    texts = [
        f"{count} x {kind}" + (f" ({examples[kind]})" if examples[kind] else "")
        for kind, count in kinds.most_common()
    ]
    return ", ".join(texts) or "none"
