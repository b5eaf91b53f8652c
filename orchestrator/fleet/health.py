"""Track the health of a rollout engine: a pure state machine, from last answer to next prompt.

    healthy --silent--> suspect --answered--> healthy
    healthy, suspect, restarting, stale --died--> dead --restart--> restarting --started--> stale
    stale --attested--> healthy
    healthy, suspect --leave--> leaving --died--> dead

Only a healthy or suspect engine is given prompts. An engine that was restarted, or that joins a
running job, begins as restarting and is stale when it has started: it holds the weights of the
model folder until a publication of the learner's weights is attested. An engine that leaves
finishes the groups that it holds. Runs in the driver; nothing here waits or calls.
"""

from __future__ import annotations

from enum import StrEnum


class Health(StrEnum):
    """State of an engine, which decides its use."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"
    RESTARTING = "restarting"
    STALE = "stale"
    LEAVING = "leaving"

    @property
    def samples(self) -> bool:
        """True where the engine may be given prompts."""
        return self in (Health.HEALTHY, Health.SUSPECT)

    @property
    def receives_weights(self) -> bool:
        """True where the engine holds attested weights, and gets every publication."""
        return self.samples or self is Health.LEAVING


class Event(StrEnum):
    """Observation of an engine, or action on it."""

    ANSWERED = "answered"
    SILENT = "silent"
    DIED = "died"
    RESTART = "restart"
    STARTED = "started"
    ATTESTED = "attested"
    LEAVE = "leave"


_NEXT = {
    (Health.HEALTHY, Event.ANSWERED): Health.HEALTHY,
    (Health.HEALTHY, Event.SILENT): Health.SUSPECT,
    (Health.HEALTHY, Event.ATTESTED): Health.HEALTHY,
    (Health.SUSPECT, Event.ANSWERED): Health.HEALTHY,
    (Health.SUSPECT, Event.SILENT): Health.SUSPECT,
    (Health.SUSPECT, Event.ATTESTED): Health.HEALTHY,
    (Health.DEAD, Event.RESTART): Health.RESTARTING,
    (Health.RESTARTING, Event.STARTED): Health.STALE,
    (Health.STALE, Event.ATTESTED): Health.HEALTHY,
    (Health.HEALTHY, Event.LEAVE): Health.LEAVING,
    (Health.SUSPECT, Event.LEAVE): Health.LEAVING,
    (Health.LEAVING, Event.ANSWERED): Health.LEAVING,
    (Health.LEAVING, Event.SILENT): Health.LEAVING,
    (Health.LEAVING, Event.ATTESTED): Health.LEAVING,
    **{(health, Event.DIED): Health.DEAD for health in Health},
}


def next_health(health: Health, event: Event) -> Health:
    """Return the state after `event`.

    Raises:
        ValueError: the event can't happen to an engine in this state.
    """
    try:
        return _NEXT[health, event]
    except KeyError:
        raise ValueError(f"an engine that is {health} can't be {event}") from None
