"""Balance and budgets: every row once, the budget hard, equal counts, and fast."""

import time

import numpy as np
import pytest

from orchestrator.step.partition import SequenceCost, balance, micro_batches, partition


def test_balance_by_hand() -> None:
    # 8 7 6 5 4 into two: 8-7=1, 6-5=1, then 4-1=3, 3-1=2: sums 16 and 14 (Karmarkar-Karp's answer)
    parts = balance([8, 7, 6, 5, 4], 2)
    assert sorted(int(np.asarray([8, 7, 6, 5, 4])[part].sum()) for part in parts) == [14, 16]
    assert sorted(np.concatenate(parts).tolist()) == [0, 1, 2, 3, 4]


def test_more_parts_than_rows_leaves_empty_parts() -> None:
    assert sorted(len(part) for part in balance([3.0, 1.0], 4)) == [0, 0, 1, 1]
    assert [len(part) for part in balance([], 2)] == [0, 0]


def test_balance_counts_the_square() -> None:
    cost = SequenceCost(linear=1.0, quadratic=1.0)
    # costs 110, 30, 30, 30 (10, 5, 5, 5 tokens): the long one stays alone
    parts = balance(cost([10, 5, 5, 5]), 2)
    assert sorted(part.tolist() for part in parts) == [[0], [1, 2, 3]]


def test_micro_batches_respect_the_budget() -> None:
    bins = micro_batches([6, 4, 5, 5, 3], 10)
    assert sorted(part.tolist() for part in bins) == [[0, 1], [2, 3], [4]]
    with pytest.raises(ValueError, match=r"token_budget=5 is below the longest sequence \(6"):
        micro_batches([6, 4], 5)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_partition_invariants(num_ranks: int) -> None:
    lengths = np.random.default_rng(num_ranks).integers(1, 500, size=157)
    plan = partition(lengths, num_ranks=num_ranks, token_budget=1024)
    assert {len(rank) for rank in plan.rows} == {plan.num_micro_batches}
    every = np.concatenate([part for rank in plan.rows for part in rank])
    assert sorted(every.tolist()) == list(range(157))
    assert max(int(lengths[part].sum()) for rank in plan.rows for part in rank) <= 1024
    assert plan.imbalance < 1.01
    assert plan.fill_frac > 0.75


def test_a_rank_without_rows_gets_empty_micro_batches() -> None:
    plan = partition([9], num_ranks=3, token_budget=10)
    assert sorted([len(part) for part in rank] for rank in plan.rows) == [[0], [0], [1]]
    empty = partition([], num_ranks=2, token_budget=10)
    assert [[len(part) for part in rank] for rank in empty.rows] == [[0], [0]]


def test_sixteen_thousand_sequences_in_time() -> None:
    lengths = np.random.default_rng(0).lognormal(6.5, 0.9, size=16_384).astype(int).clip(1, 16_000)
    begin = time.process_time()
    plan = partition(lengths, num_ranks=8, token_budget=16_384, cost=SequenceCost(quadratic=1e-4))
    assert time.process_time() - begin < 5.0  # about 0.3 s
    assert plan.imbalance < 1.001


def test_cost_of_a_model() -> None:
    cost = SequenceCost.of_model(num_parameters=100_000, num_layers=2, hidden_size=100)
    assert cost([10]).tolist() == [pytest.approx(10 + 0.002 * 100)]
    with pytest.raises(ValueError, match="non-negative"):
        SequenceCost(linear=-1.0)
