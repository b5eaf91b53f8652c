"""A plan's rows of a table as a packed batch, and per-row answers as columns keyed by row."""

import numpy as np
import pyarrow as pa
import torch

from workers.data.micro_batches import (
    as_columns,
    packed_rows,
    with_staleness,
    with_turn_numbers,
)
from workers.data.plans import MicroBatchPlan, RankPlan
from workers.data.turns import TURN_TYPE
from workers.engines.zero.weighted_loss import loss_inputs

TABLE = pa.table(
    {
        "tokens": pa.array([[5, 6, 7], [8, 9], [3, 4, 2, 1]], pa.list_(pa.int32())),
        "loss_mask": [[False, True, True], [False, True], [False, False, True, True]],
        "advantages": pa.array([[0, 1, 1], [0, -1], [0, 0, 2, 2]], pa.list_(pa.float32())),
        "reward": pa.array([1.0, None, 0.5], pa.float32()),
    }
)


def micro(*rows, weight=()):
    weights = {"policy": np.asarray(weight, dtype=np.float32)} if weight else {}
    return MicroBatchPlan(rows=np.asarray(rows, dtype=np.int64), weights=weights)


def test_rows_come_in_the_order_of_the_plan_with_their_weights_and_rewards():
    batch = packed_rows(TABLE, micro(2, 0, weight=(0.25, 0.5)), ["advantages"])
    assert batch.tokens.tolist() == [3, 4, 2, 1, 5, 6, 7]
    assert batch.loss_mask.tolist() == [False, False, True, True, False, True, True]
    assert batch.columns["advantages"].tolist() == [0, 0, 2, 2, 0, 1, 1]
    assert batch.sequence_columns["rewards"].tolist() == [0.5, 1.0]
    assert batch.weights["policy"].tolist() == [0.25, 0.5]


def test_a_row_without_a_reward_does_not_disturb_those_with_one():
    batch = packed_rows(TABLE.drop_columns(["reward"]), micro(1, weight=(1.0,)), [])
    assert batch.sequence_columns["rewards"].tolist() == [0.0]
    assert batch.tokens.tolist() == [8, 9]


def test_a_loss_is_given_the_parts_of_the_reward_that_it_names():
    parts = [[("exact", 1.0), ("format", 0.0)], [], [("exact", 0.0), ("format", 0.5)]]
    kind = pa.map_(pa.string(), pa.float32())
    table = TABLE.append_column("reward_parts", pa.array(parts, kind))
    batch = packed_rows(table, micro(2, 0), ["advantages"], reward_parts=("format",))
    assert batch.sequence_columns["reward_parts/format"].tolist() == [0.5, 0.0]
    inputs = loss_inputs(batch, torch.zeros(7), None, old_is_current=True)
    assert {name: part.tolist() for name, part in inputs.reward_parts.items()} == {
        "format": [0.5, 0.0]
    }
    per_token = inputs.reward_parts["format"][inputs.sequence_ids]
    assert per_token.tolist() == [0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0]
    filler = packed_rows(table, micro(), ["advantages"], reward_parts=("format",))
    assert filler.sequence_columns["reward_parts/format"].tolist() == [0.0]


def test_a_loss_may_read_whether_a_response_was_truncated_and_how_stale_its_tokens_are():
    ends = pa.array(["stop", "length", "length"])
    versions = pa.array([[-1, 4, 4], [-1, 6], [-1, -1, 5, 6]], pa.large_list(pa.int32()))
    table = TABLE.append_column("finish_reason", ends).append_column("weight_versions", versions)
    chunks = pa.concat_tables([table.slice(1), table.slice(0, 1)])  # rows 1, 2, 0
    batch = packed_rows(with_staleness(chunks, 6), micro(1, 2), ["staleness"])
    assert batch.sequence_columns["truncated"].tolist() == [1.0, 0.0]
    assert batch.columns["staleness"].tolist() == [0, 0, 1, 0, 0, 2, 2]
    inputs = loss_inputs(
        batch.with_columns({"advantages": torch.zeros(7)}),
        torch.zeros(7),
        None,
        old_is_current=True,
    )
    assert inputs.truncated is not None and inputs.truncated.tolist() == [True, False]
    assert inputs.staleness is not None and inputs.staleness.tolist() == [0, 0, 1, 0, 0, 2, 2]


def test_a_loss_may_read_the_turn_of_every_token_and_the_group_of_every_row():
    def span(number, start, end):
        values = {"number": number, "start": start, "end": end, "finish_reason": "stop"}
        return values | {"state": 7, "reward": 0.0}

    turns = pa.array([[span(1, 1, 2), span(3, 2, 3)], [], [span(2, 2, 4)]], TURN_TYPE)
    lists = TABLE["tokens"].combine_chunks().cast(pa.large_list(pa.int32()))
    table = TABLE.set_column(0, "tokens", lists).append_column("turns", turns)
    table = table.append_column("group_id", pa.array(["0-9", "0-7", "0-9"]))
    batch = packed_rows(with_turn_numbers(table), micro(2, 0, 1), ["turn_numbers"])
    assert batch.columns["turn_numbers"].tolist() == [0, 0, 2, 2, 0, 1, 3, 0, 0]
    inputs = loss_inputs(
        batch.with_columns({"advantages": torch.zeros(9)}),
        torch.zeros(9),
        None,
        old_is_current=True,
    )
    assert inputs.group_ids is not None and inputs.group_ids.tolist() == [1, 1, 0]


def test_answers_are_keyed_by_the_rows_of_all_micro_batches():
    plan = RankPlan(updates=((micro(2), micro(0)), (micro(1),)))
    values = (np.asarray([1, 2, 3, 4.0]), np.asarray([5, 6, 7.0]), np.asarray([8, 9.0]))
    columns = as_columns(plan, {"values": values})
    assert columns.column("row").to_pylist() == [2, 0, 1]
    assert columns.column("values").to_pylist() == [[1, 2, 3, 4], [5, 6, 7], [8, 9]]


def test_a_rank_without_rows_answers_with_no_row():
    columns = as_columns(RankPlan(updates=((micro(),),)), {"values": ()})
    assert columns.num_rows == 0
    assert columns.schema.names == ["row", "values"]
