"""Every transition of an engine's health, and every one that can't happen."""

import pytest

from orchestrator.fleet.health import Event, Health, next_health

ALLOWED = {
    ("healthy", "answered"): "healthy",
    ("healthy", "silent"): "suspect",
    ("healthy", "attested"): "healthy",
    ("healthy", "died"): "dead",
    ("suspect", "answered"): "healthy",
    ("suspect", "silent"): "suspect",
    ("suspect", "attested"): "healthy",
    ("suspect", "died"): "dead",
    ("dead", "restart"): "restarting",
    ("dead", "died"): "dead",
    ("restarting", "started"): "stale",
    ("restarting", "died"): "dead",
    ("stale", "attested"): "healthy",
    ("stale", "died"): "dead",
    ("healthy", "leave"): "leaving",
    ("suspect", "leave"): "leaving",
    ("leaving", "answered"): "leaving",
    ("leaving", "silent"): "leaving",
    ("leaving", "attested"): "leaving",
    ("leaving", "died"): "dead",
}


@pytest.mark.parametrize("health", Health)
@pytest.mark.parametrize("event", Event)
def test_transitions(health, event):
    if (health, event) in ALLOWED:
        assert next_health(health, event) == ALLOWED[health, event]
    else:
        with pytest.raises(ValueError, match=f"{health} can't be {event}"):
            next_health(health, event)


def test_only_an_engine_with_attested_weights_samples():
    assert [health for health in Health if health.samples] == ["healthy", "suspect"]
    health = Health.DEAD
    for event in (Event.RESTART, Event.STARTED, Event.ATTESTED):
        assert not health.samples
        health = next_health(health, event)
    assert health.samples


def test_an_engine_that_leaves_is_given_nothing_but_weights():
    assert [health for health in Health if health.receives_weights] == [
        "healthy",
        "suspect",
        "leaving",
    ]
    assert not Health.LEAVING.samples
