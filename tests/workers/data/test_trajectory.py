"""The Arrow schema: what goes in comes out, aligned."""

import pytest

from workers.data.record_files import describe_rows
from workers.data.trajectory import (
    SCHEMA,
    Trajectory,
    describe,
    from_record_batch,
    to_record_batch,
)
from workers.data.turns import TurnSpan


def trajectory(k=0, **changes):
    values = {
        "run_id": "run",
        "begun_version": 3,
        "prompt_uid": "p:0",
        "group_id": "0-0",
        "rollout_id": f"0-0/{k}",
        "dataset": "copy",
        "tokens": [52, 61, 55, 2],
        "loss_mask": [False, False, True, True],
        "rollout_logprobs": [0.0, 0.0, -0.5, -0.25],
        "weight_versions": [-1, -1, 7, 8],
        "finish_reason": "stop",
        "outcome": "scored",
        "reward": 0.5,
        "reward_parts": {"exact": 0.0, "positions": 1.0},
        "response_text": "7",
        "timings": {"generate": 0.2, "reward": 0.1},
    }
    return Trajectory(**{**values, **changes})


def test_record_batch_round_trip():
    batch = to_record_batch([trajectory(0), trajectory(1, outcome="failed:timeout", reward=None)])
    assert batch.schema.equals(SCHEMA)
    first, second = batch.to_pylist()
    assert first["tokens"] == [52, 61, 55, 2]
    assert first["rollout_logprobs"] == [0.0, 0.0, -0.5, -0.25]
    assert dict(first["reward_parts"]) == {"exact": 0.0, "positions": 1.0}
    assert second["reward"] is None and second["outcome"] == "failed:timeout"
    assert [describe(one) for one in from_record_batch(batch)][1].outcome == "failed:timeout"
    exact = trajectory(0, timings={"generate": 0.25, "reward": 0.125})  # what float32 can hold
    assert from_record_batch(to_record_batch([exact])) == [exact]


def test_turns_and_branches_are_recorded_and_described():
    turns = (
        TurnSpan(number=2, start=2, end=4, finish_reason="stop", state=3632233996, reward=0.5),
    )
    exact = {"timings": {"generate": 0.25}, "turns": turns, "num_turns": 2, "branch": 1}
    batch = to_record_batch([trajectory(**exact)])
    assert from_record_batch(batch) == [trajectory(**exact)]
    (meta,) = describe_rows(batch)
    assert meta == describe(trajectory(**exact))
    assert (meta.num_turns, meta.branch) == (2, 1)


def test_metadata_is_what_the_driver_sees():
    meta = describe(trajectory())
    assert (meta.num_tokens, meta.num_trained, meta.num_sampled) == (4, 2, 2)
    assert (meta.min_version, meta.max_version) == (7, 8)
    assert meta.reward == 0.5 and meta.generate_s == pytest.approx(0.2)


def test_a_failure_can_not_carry_a_reward():
    with pytest.raises(ValueError, match="outcome='failed:timeout' with reward=0.0"):
        trajectory(outcome="failed:timeout", reward=0.0)


def test_misaligned_columns_are_refused():
    with pytest.raises(ValueError, match="unequal length"):
        trajectory(loss_mask=[True])
