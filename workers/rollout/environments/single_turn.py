"""Play one prompt and one response: the environment of verifiable questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from workers.rollout.environments.contract import Outcome, Session, Task


@dataclass(frozen=True, kw_only=True)
class SingleTurn:
    """Environment of one turn, whose text the scorer scores."""

    never_blocks: ClassVar[bool] = True

    async def play(self, task: Task, session: Session) -> Outcome:  # noqa: ARG002 - the contract
        """Draw one response."""
        turn = await session.draw()
        return Outcome(response=turn.text)
