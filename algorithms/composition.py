"""Checks of a composition: kinds of parts, columns, shapes.

Everything that :class:`algorithms.algorithm.Algorithm` requires of its parts and of its batch. Runs
wherever an algorithm is built or called. Checks of a part's own fields are in
:mod:`algorithms.validation`. Shapes: [N].
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from algorithms.controllers import Controller
from algorithms.inputs import (
    CREDIT_COLUMNS,
    LOSS_COLUMNS,
    VALUE_COLUMNS,
    CreditInputs,
    LossInputs,
)
from algorithms.parts import Advantage, Correction, Part, TokenPart, ValueLoss
from algorithms.references import ReferenceRule

RESERVED_AREAS = ("learner", "critic")  # of the metrics that every update has

PartT = TypeVar("PartT", bound=Part)


def check_auxiliaries(auxiliaries: Iterable[str]) -> None:
    """Raise ValueError where an auxiliary loss has the key of a loss that every algorithm has."""
    for reserved in ("policy", "value"):
        if reserved in auxiliaries:
            raise ValueError(f"auxiliaries key {reserved!r} is taken; choose another key")


def check_bypass(bypass: bool, correction: Correction | None) -> None:
    """Raise ValueError where the ratio pi_old / mu would be counted twice."""
    if bypass and correction is not None:
        raise ValueError(
            f"bypass=True with correction={correction!r} counts pi_old / mu twice; "
            "set correction to none or bypass to false"
        )


def check_parts(advantage: Advantage, shaping: Iterable[str]) -> None:
    """Raise ValueError where shaping changes a reward that the advantage does not read."""
    keys = ", ".join(shaping)
    if advantage.reward_parts and keys:
        raise ValueError(
            f"advantage reads the parts {', '.join(advantage.reward_parts)} and not the whole "
            f"reward, which reward_shaping.{keys} changes; return that term as a part of the "
            "scorer, or remove the shaping"
        )


def check_reference(reference: ReferenceRule, parts: Iterable[Part]) -> None:
    """Raise ValueError where the reference moves although no part reads its log-probs."""
    if not reference.frozen and "ref_logprobs" not in union(parts):
        raise ValueError(
            f"reference={reference!r} has nothing to move: no part reads ref_logprobs; "
            "choose algorithm/reference=frozen, or a part with a reference, such as rpg with "
            "algorithm.policy_loss.reference=ref"
        )


def check_controllers(
    controllers: Mapping[str, Controller], start_of: Callable[[str], float]
) -> None:
    """Raise ValueError where two controllers steer one coefficient, or one starts out of bounds.

    Args:
        controllers: the controllers by key.
        start_of: gives the number at a dotted path of the algorithm.
    """
    steered: set[str] = set()
    for key, controller in controllers.items():
        path = controller.coefficient
        if path in steered:
            raise ValueError(f"controllers.{key}: {path} has a controller already; remove one")
        steered.add(path)
        controller.check_start(start_of(path))


def check_metric_names(names: Iterable[str], part: str, measured_by: dict[str, str]) -> None:
    """Raise ValueError where two parts measure one name, or a name has no area of its own.

    Args:
        names: of the metrics of `part`.
        part: the name of its class.
        measured_by: metric -> class, of the parts before; `part` is added.
    """
    for name in names:
        if name in measured_by:
            raise ValueError(
                f"{part} and {measured_by[name]} both measure {name!r}, and one would overwrite "
                "the other; leave one of the parts out, or rename the metric in a subclass"
            )
        area, slash, _ = name.partition("/")
        if not slash or area in RESERVED_AREAS:
            raise ValueError(
                f"{part} measures {name!r}, a name that the framework uses; call it "
                f"policy/{name.replace('/', '_')}"
            )
        measured_by[name] = part


def vocabulary(part: Part) -> tuple[str, frozenset[str]]:
    """Return the kind of a part in words, and the columns that parts of this kind may declare."""
    if isinstance(part, Advantage):
        return "advantage", CREDIT_COLUMNS
    if isinstance(part, ValueLoss):
        return "value loss", VALUE_COLUMNS
    return "part of the loss", LOSS_COLUMNS


def check_known(part: Part) -> None:
    """Raise ValueError where a part declares a column that parts of its kind are never given.

    And where the parts of the reward that it names are no tuple of names.
    """
    kind, known = vocabulary(part)
    unknown = part.columns - known
    if unknown:
        raise ValueError(
            f"{type(part).__name__} declares columns {sorted(unknown)}, which no {kind} is given; "
            f"choose from {sorted(known)}"
        )
    names = part.reward_parts if isinstance(part, TokenPart | Advantage) else ()
    if isinstance(names, str):
        raise ValueError(
            f"{type(part).__name__} declares reward_parts={names!r}, one text; write ({names!r},)"
        )


def check_kind(name: str, part: object, kind: type[Part]) -> None:
    """Raise ValueError unless `part` inherits `kind`."""
    if not isinstance(part, kind):
        raise ValueError(
            f"{name}={part!r} is no {kind.__name__}; inherit algorithms.parts.{kind.__name__}"
        )


def part_values(reader: str, part: str, parts: Sequence[Mapping[str, float]]) -> Tensor:
    """Return one reward part of S sequences [S], or raise ValueError where a reward lacks it.

    Args:
        reader: key of the algorithm's part that reads the reward part, such as "policy_loss".
        part: name of the reward part.
        parts: of each reward.
    """
    lacking = [own for own in parts if part not in own]
    if lacking or not parts:
        have = sorted({key for own in parts for key in own})
        raise ValueError(
            f"{reader} reads {part!r}, which is no part of every reward; there is "
            f"{', '.join(have) or 'none'}: name one of them, or return the part from the scorer"
        )
    return torch.tensor([own[part] for own in parts])


def check_reward_parts(
    algorithm: str, names: Iterable[str], inputs: LossInputs | CreditInputs
) -> None:
    """Raise ValueError where the batch lacks a part of the reward that the algorithm reads."""
    missing = sorted(set(names) - set(inputs.reward_parts or {}))
    if missing:
        raise ValueError(
            f"algorithm {algorithm!r} reads the reward's parts {missing} and the batch lacks them; "
            "pass what `reward_parts` names"
        )


def plain_mapping(name: str, parts: Mapping[str, PartT], kind: type[PartT]) -> dict[str, PartT]:
    """Copy a mapping of parts to a plain dict, or raise ValueError."""
    if not isinstance(parts, Mapping):
        raise ValueError(f"{name}={parts!r} is no mapping; give each part a key")
    plain = {str(key): part for key, part in parts.items()}
    for key, part in plain.items():
        check_kind(f"{name}.{key}", part, kind)
    return plain


def union(parts: Iterable[Part]) -> frozenset[str]:
    """Return the columns that any of the parts reads."""
    return frozenset().union(*(part.columns for part in parts))


def check_columns(
    algorithm: str, columns: frozenset[str], inputs: LossInputs | CreditInputs
) -> None:
    """Raise ValueError where the batch lacks a column that the algorithm reads."""
    missing = sorted(name for name in columns if getattr(inputs, name, None) is None)
    if missing:
        raise ValueError(
            f"algorithm {algorithm!r} reads columns {missing} and the batch lacks them; "
            "produce what `required_columns` names"
        )


def check_finite_tensor(name: str, value: Tensor, remedy: str) -> None:
    """Raise ValueError where any entry is NaN or infinite."""
    bad = int((~torch.isfinite(value)).sum().item())
    if bad:
        raise ValueError(f"{name}: {bad} of {value.numel()} are not finite; {remedy}")


def check_shape(name: str, value: Tensor, like: Tensor) -> None:
    """Raise ValueError unless `value` has one entry per token."""
    if value.shape != like.shape:
        raise ValueError(
            f"{name} returned shape {tuple(value.shape)} for {tuple(like.shape)} tokens; "
            "return one value per token and leave reduction to the aggregation"
        )


def shaped(part: Part, value: Tensor, inputs: LossInputs) -> Tensor:
    """Return a part's output [N], or raise ValueError on another shape."""
    check_shape(type(part).__name__, value, inputs.loss_mask)
    return value
