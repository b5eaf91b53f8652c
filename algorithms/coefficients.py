"""Numbers of a frozen composition by dotted path: read one, or make a copy with others.

What it is: how a steered coefficient gets into an algorithm that never changes. What it is not: a
way to change parts; only numbers are replaced, and every part on the way checks itself again.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

RootT = TypeVar("RootT")


def read(root: object, path: str) -> float:
    """The number at `path`, such as `regularizers.kl.coefficient`.

    Raises:
        ValueError: no number is there; lists what is.
    """
    node = root
    for key in path.split("."):
        node = _child(node, key, path)
    if isinstance(node, bool) or not isinstance(node, int | float):
        raise ValueError(f"{path}={node!r} is no number; name a number below it")
    return float(node)


def replaced(root: RootT, values: Mapping[str, float]) -> RootT:
    """A copy of `root` with other numbers at the given paths; itself where there are none."""
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
