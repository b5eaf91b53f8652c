"""Advantages of a step from Arrow to Arrow, filtered rows included."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from algorithms.advantages.decoupled import DecoupledGroupRelative
from algorithms.advantages.outcome import BatchRelative, GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.policy_losses.clipped import ClippedRatio
from workers.data.plans import CreditPlan, Slice, step_table
from workers.data.turns import TURN_TYPE
from workers.learner.credit import assign_credit, critic_metrics

ALGORITHM = Algorithm(
    name="test",
    advantage=GroupRelative(eps=1e-6),
    policy_loss=ClippedRatio(clip_low=0.2, clip_high=0.2),
    aggregation=TokenMean(),
)


def batch(lengths):
    tokens = [list(range(length)) for length in lengths]
    masks = [[False] + [True] * (length - 1) for length in lengths]
    return pa.RecordBatch.from_arrays(
        [pa.array(tokens, pa.list_(pa.int32())), pa.array(masks, pa.list_(pa.bool_()))],
        names=["tokens", "loss_mask"],
    )


def test_group_advantages_land_on_trained_tokens():
    # Two groups of two; rows come from slices of two batches.
    table = step_table(
        [Slice(batch=0, start=1, length=2), Slice(batch=1, start=0, length=2)],
        [batch([9, 3, 2]), batch([4, 3])],
    )
    plan = CreditPlan(
        shaped_rewards=np.array([1.0, 0.0, 0.0, 2.0], dtype=np.float32),
        group_ids=np.array([0, 0, 1, 1]),
        trained=np.array([True, True, True, False]),
    )
    columns, metrics = assign_credit(ALGORITHM, plan, table)
    assert columns.column("row").to_pylist() == [0, 1, 2, 3]
    rows = columns.column("advantages").to_pylist()
    # Siblings 1 and 0: mean 0.5, unbiased std sqrt(0.5), so +-0.70710678.
    assert rows[0] == pytest.approx([0, 0.7071058, 0.7071058], abs=1e-5)
    assert rows[1] == pytest.approx([0, -0.7071058], abs=1e-5)
    assert rows[2] == pytest.approx([0, -0.7071064, -0.7071064, -0.7071064], abs=1e-5)
    assert rows[3] == [0, 0, 0]  # filtered: its reward counts, its tokens do not train
    assert metrics["credit/zero_frac"] == 0.0


def test_explained_variance_is_what_values_foretold():
    returns = np.array([0.0, 1.0, 2.0, 3.0], dtype=np.float32)  # variance 1.25
    assert critic_metrics(returns, returns)["critic/explained_variance"] == 1.0
    constant = np.full(4, 7.0, dtype=np.float32)
    assert critic_metrics(constant, returns)["critic/explained_variance"] == 0.0
    # returns - values = 0, 1, 2, 1: mean 1, variance 0.5, and 1 - 0.5 / 1.25 = 0.6
    found = critic_metrics(np.array([0.0, 0.0, 0.0, 2.0], dtype=np.float32), returns)
    assert found["critic/explained_variance"] == pytest.approx(0.6)
    assert (found["critic/value_mean"], found["critic/return_mean"]) == (0.5, 1.5)
    assert critic_metrics(returns, constant)["critic/explained_variance"] == 0.0


class WithoutTruncated(BatchRelative):
    """The reward itself, and 0 for truncated responses."""

    def __call__(self, inputs):
        rewards = inputs.shaped_rewards.masked_fill(inputs.truncated, 0.0)
        return super().__call__(replace(inputs, shaped_rewards=rewards))


def test_an_advantage_sees_which_responses_were_truncated():
    table = pa.Table.from_batches([batch([2, 2])])
    table = table.append_column("finish_reason", pa.array(["length", "stop"]))
    plan = CreditPlan(
        shaped_rewards=np.array([1.0, 1.0], dtype=np.float32),
        group_ids=np.array([0, 0]),
        trained=np.array([True, True]),
    )
    algorithm = replace(ALGORITHM, advantage=WithoutTruncated(baseline="none", whiten="none"))
    columns, _ = assign_credit(algorithm, plan, table)
    assert columns.column("advantages").to_pylist() == [[0, 0], [0, 1]]


def test_an_advantage_reads_the_parts_of_the_reward_that_it_names():
    table = pa.Table.from_batches([batch([2, 2])])
    kind = pa.map_(pa.string(), pa.float32())
    parts = pa.array([[("exact", 1.0), ("format", 0.0)], [("exact", 0.0), ("format", 1.0)]], kind)
    plan = CreditPlan(
        shaped_rewards=np.array([1.0, 1.0], dtype=np.float32),
        group_ids=np.array([0, 0]),
        trained=np.array([True, True]),
    )
    advantage = DecoupledGroupRelative(weights={"exact": 1.0}, whiten="none", eps=0.0)
    algorithm = replace(ALGORITHM, advantage=advantage)
    columns, metrics = assign_credit(algorithm, plan, table.append_column("reward_parts", parts))
    rows = columns.column("advantages").to_pylist()
    assert rows[0] == pytest.approx([0, 0.7071068])
    assert rows[1] == pytest.approx([0, -0.7071068])
    assert metrics["credit/part/exact/informative_groups_frac"] == 1.0


class Turns(BatchRelative):
    """Gives every token the number of its turn in the batch, and every rollout's reward."""

    def __call__(self, inputs):
        assert inputs.turn_ids is not None
        assert inputs.turn_rewards is not None and inputs.turn_states is not None
        assert inputs.turn_rewards.tolist() == [0.25, 0.75, 0.5]
        assert inputs.turn_states.tolist() == [7, 8, 7]
        assert inputs.shaped_rewards.tolist() == [1.0, 0.5]  # of rollouts
        assert inputs.group_ids.tolist() == [0, 0]
        credit = super().__call__(inputs)
        own = torch.where(inputs.loss_mask, inputs.turn_ids + 1.0, 0.0)
        return replace(credit, advantages=own + 10 * inputs.sequence_ids)


def test_rows_of_one_rollout_are_one_sequence_and_their_turns_have_an_order():
    def span(number, start, end, state, reward):
        values = {"number": number, "start": start, "end": end, "finish_reason": "stop"}
        return values | {"state": state, "reward": reward}

    turns = [
        [span(1, 1, 3, 7, 0.25)],
        [span(2, 3, 4, 8, 0.75)],
        [span(1, 1, 2, 7, 0.5)],
    ]
    masks = [[False, True, True], [False, False, False, True], [False, True]]
    rows = pa.RecordBatch.from_arrays(
        [
            pa.array([[1, 2, 3], [1, 2, 4, 5], [1, 6]], pa.large_list(pa.int32())),
            pa.array(masks, pa.large_list(pa.bool_())),
            pa.array(turns, TURN_TYPE),
        ],
        names=["tokens", "loss_mask", "turns"],
    )
    plan = CreditPlan(
        shaped_rewards=np.array([1.0, 1.0, 0.5], dtype=np.float32),
        group_ids=np.array([0, 0, 0]),
        trained=np.array([True, True, True]),
        rollout_ids=np.array([0, 0, 1]),
    )
    algorithm = replace(ALGORITHM, advantage=Turns(baseline="none", whiten="none"))
    columns, _ = assign_credit(algorithm, plan, pa.Table.from_batches([rows]))
    assert columns.column("advantages").to_pylist() == [[0, 1, 1], [0, 0, 0, 2], [10, 13]]
