"""Keep what the driver knows of one rollout engine: health, load, deaths, its last answer.

The pool writes it; recovery, membership and publication read it. Nothing here calls an engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.fleet.health import Event, Health, next_health
from workers.data.requests import EngineLoad


@dataclass(kw_only=True, slots=True)
class EngineRecord:
    """Record of one engine in the pool.

    Attributes:
        answered: when it last answered, or was given something to answer.
        load: as it last reported.
        deaths: since its last finished group.
        collecting: whether a `collect` call is open.
        loss_reason: why it died the last time.
    """

    answered: float
    health: Health = Health.HEALTHY
    load: EngineLoad = field(default_factory=EngineLoad)
    deaths: int = 0
    collecting: bool = False
    loss_reason: str = ""

    def apply(self, event: Event) -> None:
        """Move on to the state that `event` leads to."""
        self.health = next_health(self.health, event)
