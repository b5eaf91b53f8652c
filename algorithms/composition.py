"""Checks of a composition: kinds of parts, columns, shapes.

What it is: what :class:`algorithms.algorithm.Algorithm` asks of its parts and of its batch. What it
is not: checks of a part's own fields, see :mod:`algorithms.validation`. Shapes: [N].
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from algorithms.inputs import COLUMNS, CreditInputs, LossInputs
from algorithms.parts import Part

PartT = TypeVar("PartT", bound=Part)


def check_known(part: Part) -> None:
    """Raise when a part declares a column that the vocabulary lacks."""
    unknown = part.columns - COLUMNS
    if unknown:
        raise ValueError(
            f"{type(part).__name__} declares unknown columns {sorted(unknown)}; "
            f"choose from {sorted(COLUMNS)}"
        )


def check_kind(name: str, part: object, kind: type[Part]) -> None:
    """Raise unless `part` inherits `kind`."""
    if not isinstance(part, kind):
        raise ValueError(
            f"{name}={part!r} is no {kind.__name__}; inherit algorithms.parts.{kind.__name__}"
        )


def plain_mapping(name: str, parts: Mapping[str, PartT], kind: type[PartT]) -> dict[str, PartT]:
    """Copy a mapping of parts to a plain dict, or raise."""
    if not isinstance(parts, Mapping):
        raise ValueError(f"{name}={parts!r} is no mapping; give each part a key")
    plain = {str(key): part for key, part in parts.items()}
    for key, part in plain.items():
        check_kind(f"{name}.{key}", part, kind)
    return plain


def union(parts: Iterable[Part]) -> frozenset[str]:
    """Columns that any of the parts reads."""
    return frozenset().union(*(part.columns for part in parts))


def check_columns(
    algorithm: str, columns: frozenset[str], inputs: LossInputs | CreditInputs
) -> None:
    """Raise when the batch lacks a column that the algorithm reads."""
    missing = sorted(name for name in columns if getattr(inputs, name, None) is None)
    if missing:
        raise ValueError(
            f"algorithm {algorithm!r} reads columns {missing} and the batch lacks them; "
            "produce what `required_columns` names"
        )


def check_finite_tensor(name: str, value: Tensor, remedy: str) -> None:
    """Raise when any entry is NaN or infinite."""
    bad = int((~torch.isfinite(value)).sum().item())
    if bad:
        raise ValueError(f"{name}: {bad} of {value.numel()} are not finite; {remedy}")


def check_shape(name: str, value: Tensor, like: Tensor) -> None:
    """Raise unless `value` has one entry per token."""
    if value.shape != like.shape:
        raise ValueError(
            f"{name} returned shape {tuple(value.shape)} for {tuple(like.shape)} tokens; "
            "return one value per token and leave reduction to the aggregation"
        )


def shaped(part: Part, value: Tensor, inputs: LossInputs) -> Tensor:
    """Return a part's output [N], or raise on another shape."""
    check_shape(type(part).__name__, value, inputs.loss_mask)
    return value
