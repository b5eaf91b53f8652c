"""Plans and requests: literal records, and what a rank reads of them."""

import pickle

import numpy as np
import pyarrow as pa

from workers.data.plans import (
    MicroBatchPlan,
    RankPlan,
    Slice,
    computed_columns,
    join_computed,
    step_table,
)
from workers.data.requests import GroupRequest, Sampling


def micro_batch(*rows: int) -> MicroBatchPlan:
    weights = {"policy": np.full(len(rows), 0.125, dtype=np.float32)}
    return MicroBatchPlan(rows=np.array(rows, dtype=np.int64), weights=weights)


def rows_of(plan: RankPlan) -> list[list[int]]:
    return [micro.rows.tolist() for micro in plan.micro_batches]


def two_passes() -> RankPlan:
    """Rows 0, 3 and 5 of a step in two updates, passed over twice, the second time shuffled."""
    return RankPlan(
        updates=(
            (micro_batch(0), micro_batch(3)),
            (micro_batch(5), micro_batch()),
            (micro_batch(5), micro_batch(0)),
            (micro_batch(3), micro_batch()),
        ),
        num_passes=2,
        coefficients={"regularizers.kl.coefficient": 0.001},
    )


def test_a_pass_is_a_plan_with_its_own_updates_and_the_same_coefficients():
    first, second = two_passes().passes
    assert rows_of(first) == [[0], [3], [5], []]
    assert rows_of(second) == [[5], [0], [3], []]
    assert first.num_passes == second.num_passes == 1
    assert first.coefficients == second.coefficients == {"regularizers.kl.coefficient": 0.001}


def test_the_micro_batches_of_a_plan_are_those_of_its_first_pass():
    assert rows_of(two_passes()) == [[0], [3], [5], []]


def test_a_table_of_a_step_is_its_slices_end_to_end():
    batches = [
        pa.RecordBatch.from_pydict({"rollout_id": ["0-7/0", "0-7/1", "0-2/0"]}),
        pa.RecordBatch.from_pydict({"rollout_id": ["0-5/0", "0-5/1"]}),
    ]
    slices = [Slice(batch=1, start=1, length=1), Slice(batch=0, start=0, length=2)]
    rollouts = step_table(slices, batches).column("rollout_id").to_pylist()
    assert rollouts == ["0-5/1", "0-7/0", "0-7/1"]


def test_a_request_crosses_a_process_boundary_unchanged():
    request = GroupRequest(
        group_id="0-7",
        prompt_uid="train:7",
        begun_version=3,
        dataset="add",
        prompt="2+3=",
        ground_truth="5",
        num_samples=8,
        seed=56,
        sampling=Sampling(temperature=1.0, max_tokens=64),
        columns={"level": 1},
        may_stop_early=True,
    )
    copy = pickle.loads(pickle.dumps(request))
    assert copy == request
    assert copy.sampling == Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=64)


def test_a_rank_reads_the_rows_of_all_its_passes():
    """A later pass gives the rank rows that another rank had before."""
    first, second = (micro_batch(3), micro_batch()), (micro_batch(0), micro_batch(3))
    plan = RankPlan(updates=(first, second), num_passes=2)
    assert plan.rows.tolist() == [0, 3]
    assert [once.rows.tolist() for once in plan.passes] == [[3], [0, 3]]


def test_computed_columns_join_by_row():
    table = pa.table({"rollout_id": ["0-7/0", "0-7/1", "0-7/2"]})
    one = computed_columns(np.array([2]), np.array([4]), old_logprobs=np.arange(4.0))
    two = computed_columns(np.array([0]), np.array([4]), old_logprobs=np.arange(4.0) + 10)
    joined = join_computed(table, [one, two])
    assert joined.column("old_logprobs").to_pylist() == [[10, 11, 12, 13], None, [0, 1, 2, 3]]
    assert isinstance(joined, pa.Table) and joined.num_rows == 3


def test_flags_are_bytes_also_where_a_rank_trained_no_row():
    table = pa.table({"rollout_id": ["0-7/0", "0-7/1"]})
    none = np.zeros(0, dtype=np.int64)
    empty = np.zeros(0, dtype=np.float32)
    one = computed_columns(np.array([1]), np.array([4]), loss_flags=np.array([0.0, 0.0, 1.0, 6.0]))
    joined = join_computed(table, [one, computed_columns(none, none, loss_flags=empty)])
    assert joined.column("loss_flags").type == pa.large_list(pa.uint8())
    assert joined.column("loss_flags").to_pylist() == [None, [0, 0, 1, 6]]


def test_only_the_columns_and_rows_that_a_rank_reads_are_copied():
    table = pa.table({"rollout_id": ["0-7/0", "0-7/1", "0-7/2"]})
    four = {"old_logprobs": np.arange(4.0), "values": np.ones(4)}
    one = computed_columns(np.array([2]), np.array([4]), **four)
    two = computed_columns(np.array([0, 1]), np.array([4, 4]), old_logprobs=np.arange(8.0))
    joined = join_computed(table, [one, two], names={"old_logprobs"}, rows=[1])
    assert "values" not in joined.column_names
    assert joined.column("old_logprobs").to_pylist() == [None, [4, 5, 6, 7], None]
    assert joined.column("old_logprobs").nbytes < 60  # one row's values, offsets and validity
