"""The groups of a report: every failure's reason, the extremes, then seeded chance."""

from pathlib import Path

import numpy as np

from orchestrator.report.rows import RecordedStep
from orchestrator.report.selection import PER_EXTREME, RANDOM, choose


def recorded(step, groups, *, outcomes=None, gaps=None):
    """A step of two samples a group."""
    ids = [f"{step}-{number}" for number in range(groups) for _ in range(2)]
    rows = len(ids)
    facts = {"gap": np.array(gaps if gaps is not None else [0.0] * rows)}
    return RecordedStep(
        step=step,
        file=Path("unread"),
        small={
            "group_id": ids,
            "prompt_uid": [f"p{step}-{one}" for one in ids],
            "outcome": outcomes or ["scored"] * rows,
            "reward": [0.0] * rows,
            "finish_reason": ["stop"] * rows,
            "num_turns": [1] * rows,
        },
        facts=facts,
    )


def test_every_reason_of_a_failure_is_chosen_first_and_whole():
    outcomes = ["scored"] * 2000
    outcomes[501], outcomes[77] = "failed:timeout", "dropped:early_stop"
    chosen = choose([recorded(1, 1000, outcomes=outcomes)], seed=0)
    assert {(group.why, group.rows) for group in chosen[:2]} == {
        ("failed:timeout", (500, 501)),
        ("dropped:early_stop", (76, 77)),
    }


def test_the_extremes_come_in_their_order():
    gaps = np.zeros(2000)
    gaps[[10, 400, 900]] = [0.1, 0.3, 0.2]
    chosen = choose([recorded(1, 1000, gaps=gaps)], seed=0)
    worst = [group.rows[0] for group in chosen if group.why == "largest log-prob gap"]
    assert worst[:3] == [400, 900, 10]
    assert len(worst) == PER_EXTREME


def test_a_number_that_never_varies_has_no_extremes():
    chosen = choose([recorded(1, 1000)], seed=0)
    assert "largest log-prob gap" not in {group.why for group in chosen}


def test_the_rest_is_drawn_by_the_seed_without_repetition():
    steps = [recorded(step, 1000) for step in (1, 2)]
    first, again, other = (choose(steps, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    keys = [(group.place, group.rows) for group in first]
    assert len(set(keys)) == len(keys)
    assert sum(group.why == "drawn at random" for group in first) == RANDOM


def test_of_steps_whose_tokens_are_unread_only_a_new_reason_is_chosen():
    unread = recorded(2, 3, outcomes=["scored"] * 5 + ["failed:crash"])
    unread = RecordedStep(step=2, file=unread.file, small=unread.small, facts={})
    chosen = choose([recorded(1, 3), unread], seed=0)
    assert [group.why for group in chosen if group.place == 1] == ["failed:crash"]
    assert choose([], seed=0) == []
