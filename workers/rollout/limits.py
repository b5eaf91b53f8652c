"""Define the budgets of one rollout, and an environment with its budgets and its place.

The driver makes both, the rollout workers keep to them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from workers.rollout.environments.contract import Environment
from workers.rollout.environments.preparing import prepared
from workers.rollout.isolation.environment import ProcessEnvironment

THREAD, PROCESS = "thread", "process"  # where an environment plays that may block
OTHER_BYTES = 4 << 20  # of a message from a process, beside what the budgets allow


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutLimits:
    """Budgets of one rollout, beside the tokens behind its prompt (`Sampling.max_tokens`).

    Example, a game of eight short turns whose environment answers within a second:
        RolloutLimits(max_turns=8, max_turn_tokens=16, stretch_s=1.0, total_s=20.0)

    Attributes:
        max_turns: turns that are sampled, over all rows of the rollout.
        max_turn_tokens: sampled in one turn; None: what is left of the tokens.
        max_observation_bytes: of the texts that the environment writes, all together.
        max_image_bytes: of the files of all images that the environment shows.
        stretch_s: longest time in seconds before, between and after the draws.
        total_s: of all these times together; None: as many stretches as there are turns.
    """

    max_turns: int = 1
    max_turn_tokens: int | None = None
    max_observation_bytes: int = 65_536
    max_image_bytes: int = 16_777_216
    stretch_s: float = 60.0
    total_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundedEnvironment:
    """Environment, the budgets of every rollout in it, and the place of its code.

    Example, one response to each prompt:
        BoundedEnvironment(environment=SingleTurn(), limits=RolloutLimits(max_turns=1))

    Attributes:
        environment: plays.
        limits: of every rollout.
        isolation: "thread": a rollout has a thread of the rollout worker, unless its environment
            never blocks; "process": it has a process of its own.
    """

    environment: Environment
    limits: RolloutLimits
    isolation: str = THREAD

    def prepared(self, tokenizer: Any) -> BoundedEnvironment:
        """Return the same limits around the environment that plays: see `preparing.prepared`.

        Raises:
            ValueError: the environment can't be sent to another process.
            RuntimeError: it can't be built there.
        """
        if self.isolation == THREAD or isinstance(self.environment, ProcessEnvironment):
            return replace(self, environment=prepared(self.environment, tokenizer))
        most = self.limits.max_observation_bytes + self.limits.max_image_bytes * 4 // 3
        playing = ProcessEnvironment(self.environment, most_bytes=most + OTHER_BYTES)
        return replace(self, environment=playing)
