"""Numbers of a frozen composition by dotted path: read one, or copy the composition with others.

A steered coefficient gets into an algorithm that never changes through a copy. Runs in the driver,
and in every rank that trains. Only numbers are replaced, never parts, and every part on the way to
a number checks its own fields again.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

RootT = TypeVar("RootT")


def read(root: object, path: str) -> float:
    """Return the number at `path`, such as `regularizers.kl.coefficient`.

    Raises:
        ValueError: no number is at `path`; lists the names that are.
    """
    node = root
    for key in path.split("."):
        node = _child(node, key, path)
    if isinstance(node, bool) or not isinstance(node, int | float):
        raise ValueError(f"{path}={node!r} is no number; name a number below it")
    return float(node)


def replaced(root: RootT, values: Mapping[str, float]) -> RootT:
    """Copy `root` with other numbers at the given paths; without any, return `root` itself."""
    for path, value in values.items():
        read(root, path)
        root = _replaced(root, path.split("."), value)
    return root


def _replaced(node: Any, keys: list[str], value: float) -> Any:
    first, rest = keys[0], keys[1:]
    child = _replaced(_child(node, first, first), rest, value) if rest else value
    return {**node, first: child} if isinstance(node, Mapping) else replace(node, **{first: child})


def _child(node: Any, key: str, path: str) -> Any:
    if isinstance(node, Mapping):
        names = [str(name) for name in node]
    else:
        names = [item.name for item in fields(node)] if is_dataclass(node) else []
    if key not in names:
        found = ", ".join(sorted(names)) or "no parts"
        raise ValueError(f"{path} is nowhere in the algorithm: no {key!r} among {found}")
    return node[key] if isinstance(node, Mapping) else getattr(node, key)
