"""Check what an environment returned, and make plain numbers and texts of it.

An environment is a user's program, which may count with tensors or decimals, or return anything at
all. What passes here can be recorded. Runs in the rollout worker. Plays and scores nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from workers.reward.base import LARGEST, MAX_PARTS
from workers.rollout.environments.contract import Outcome


class OutcomeFaultError(ValueError):
    """Result of `play` that can't be recorded; the message is the reason."""


def checked(outcome: object) -> Outcome:
    """Return an outcome as plain numbers and texts.

    Raises:
        OutcomeFaultError: it is no `Outcome`, or holds what is no number or no text.
    """
    if not isinstance(outcome, Outcome):
        raise OutcomeFaultError(f"{type(outcome).__name__} instead of an Outcome")
    for name in ("parts", "notes"):
        if not isinstance(found := getattr(outcome, name), Mapping):
            raise OutcomeFaultError(f"{name} of type {type(found).__name__}, not a mapping")
    if len(outcome.parts) > MAX_PARTS:
        raise OutcomeFaultError(f"{len(outcome.parts)} parts, more than {MAX_PARTS}")
    try:
        earned = list(outcome.turn_rewards)
    except Exception as error:
        kind = type(outcome.turn_rewards).__name__
        raise OutcomeFaultError(f"turn_rewards of type {kind}, not a sequence") from error
    response = outcome.response
    return Outcome(
        reward=None if outcome.reward is None else _number("reward", outcome.reward),
        parts={
            str(name): _number(f"part {name!r}", value) for name, value in outcome.parts.items()
        },
        notes={str(name): _text(f"note {name!r}", text) for name, text in outcome.notes.items()},
        turn_rewards=tuple(
            _number(f"turn reward {number}", value) for number, value in enumerate(earned)
        ),
        response=None if response is None else _text("response", response),
    )


def _number(name: str, value: object) -> float:
    try:
        finite = math.isfinite(value)  # type: ignore[arg-type]  # texts have no such method
        number = float(value) if finite else math.inf  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    except Exception as error:  # a value's own methods are the user's code, too
        kind = type(value).__name__
        raise OutcomeFaultError(f"{name} of type {kind}, not a number") from error
    if abs(number) > LARGEST:
        raise OutcomeFaultError(f"{name} that is not finite")
    return number


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise OutcomeFaultError(f"{name} of type {type(value).__name__}, not a text")
    return value
