"""Define the turns of a trajectory: a row's spans of sampled tokens, as a column of the record.

Rollout workers make the spans; credit, the report and `ballast data inspect` read them. Which of a
span's tokens train is said by `loss_mask`, not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

TURN_TYPE = pa.large_list(
    pa.struct(
        [
            ("number", pa.int32()),
            ("start", pa.int32()),
            ("end", pa.int32()),
            ("finish_reason", pa.string()),
            ("state", pa.int64()),
            ("reward", pa.float32()),
        ]
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnSpan:
    """One sampled turn: tokens [start, end) of its row.

    Example, the second turn of a rollout, of two tokens, which earned half of the reward:
        TurnSpan(number=2, start=9, end=11, finish_reason="stop", state=3632233996, reward=0.5)

    Attributes:
        number: of the turn in its rollout, from 1; counts over all rows of the rollout.
        finish_reason: stop, length or abort.
        state: checksum of the state before the turn: siblings with an equal one chose in the same
            state.
        reward: share of the rollout's reward that the turn earned; 0 where nobody said.
    """

    number: int
    start: int
    end: int
    finish_reason: str
    state: int
    reward: float = 0.0


_NAMES = tuple(field.name for field in fields(TurnSpan))


def as_structs(spans: Sequence[TurnSpan]) -> list[dict[str, Any]]:
    """Return spans as values of `TURN_TYPE`."""
    return [{name: getattr(span, name) for name in _NAMES} for span in spans]


def from_structs(values: Sequence[Mapping[str, Any]]) -> tuple[TurnSpan, ...]:
    """Return the spans of one value of `TURN_TYPE`."""
    return tuple(TurnSpan(**value) for value in values)
