"""Guess a hidden number in a few turns, each answered by "too high" or "too low".

A game of which the best play is known (halve the range), so a run shows at a glance if a policy
learns from what it observed in earlier turns. Prompts: `workers/tasks/guessing.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from workers.rollout.environments.contract import Outcome, Session, Task

NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class Guessing:
    """Environment in which the ground truth is hidden: reward 1 for its number, 0 for none.

    Attributes:
        low: smallest number that may be hidden.
        high: greatest number that may be hidden.
        too_high: answer to a guess above the hidden number.
        too_low: answer to a guess below it.
        unclear: answer to a turn without a number.
    """

    never_blocks: ClassVar[bool] = True

    low: int = 0
    high: int = 2
    too_high: str = "<"
    too_low: str = ">"
    unclear: str = "?"

    async def play(self, task: Task, session: Session) -> Outcome:
        """Draw guesses until one is right or the budget is spent.

        Raises:
            ValueError: the ground truth is no number.
        """
        hidden, low, high = int(str(task.ground_truth)), self.low, self.high
        guesses = 0
        while session.may_draw:
            turn = await session.draw(state=f"{low}-{high}")
            guesses += 1
            found = NUMBER.search(turn.text)
            guess = None if found is None else int(found.group())
            if guess == hidden:
                return Outcome(reward=1.0, parts={"correct": 1.0, "guesses": float(guesses)})
            if guess is None:
                answer = self.unclear
            elif guess > hidden:
                answer, high = self.too_high, min(high, guess - 1)
            else:
                answer, low = self.too_low, max(low, guess + 1)
            if session.may_draw:
                await session.observe([{"role": "user", "content": answer}])
        return Outcome(reward=0.0, parts={"correct": 0.0, "guesses": float(guesses)})
