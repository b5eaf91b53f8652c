"""Define one finished row of a rollout, before its reward is known."""

from __future__ import annotations

from dataclasses import dataclass

from workers.data.turns import TurnSpan


@dataclass(frozen=True, kw_only=True)
class Row:
    """Token-aligned columns of one row, L tokens.

    Example, a prompt of two tokens and a turn of two:
        Row(
            branch=0,
            tokens=[52, 61, 55, 2],
            loss_mask=[False, False, True, True],
            rollout_logprobs=[0.0, 0.0, -0.31, -0.02],
            weight_versions=[-1, -1, 7, 7],
            turns=(TurnSpan(number=1, start=2, end=4, finish_reason="stop", state=7),),
        )
    """

    branch: int
    tokens: list[int]
    loss_mask: list[bool]
    rollout_logprobs: list[float]
    weight_versions: list[int]
    turns: tuple[TurnSpan, ...]
