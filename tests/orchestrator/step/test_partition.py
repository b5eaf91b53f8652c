"""Balance and budgets: every row once, the budget hard, equal counts, and fast."""

import time

import numpy as np
import pytest

from orchestrator.step.balance import balance
from orchestrator.step.partition import SequenceCost, micro_batches, partition
from orchestrator.step.siblings import Siblings, alone, computed_tokens
from workers.data.shared_prefixes import ALONE


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
    cost = SequenceCost.of_model(num_parameters=100_000, num_layers=2, attention_size=100)
    assert cost([10]).tolist() == [pytest.approx(10 + 0.002 * 100)]
    with pytest.raises(ValueError, match="non-negative"):
        SequenceCost(linear=-1.0)


def grouped(sizes: list[int], prefix: int) -> Siblings:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    return Siblings(groups=groups, prefixes=np.full(len(groups), prefix))


def test_siblings_stay_together_where_that_balances() -> None:
    lengths = np.asarray([12, 12, 13, 13])
    plan = partition(lengths, num_ranks=2, token_budget=40, siblings=grouped([2, 2], 10))
    # 10 + 2 + 2 = 14 and 10 + 3 + 3 = 16: mean 15
    assert sorted(rank[0].tolist() for rank in plan.rows) == [[0, 1], [2, 3]]
    assert plan.imbalance == pytest.approx(16 / 15)
    assert plan.num_tokens == 30
    assert plan.fill_frac == pytest.approx(30 / 80)


def test_a_group_is_cut_where_that_makes_the_slowest_rank_faster() -> None:
    lengths = np.asarray([20, 20, 20, 20])
    together = partition(lengths, num_ranks=2, token_budget=100, siblings=grouped([4], 2))
    # 2 + 4 * 18 = 74 on one rank, or 2 + 2 * 18 = 38 on each
    assert sorted(len(rank[0]) for rank in together.rows) == [2, 2]
    assert together.num_tokens == 76
    shorter = np.asarray([41, 41])  # 42 on one rank against 41 on each
    apart = partition(shorter, num_ranks=2, token_budget=100, siblings=grouped([2], 40))
    assert sorted(len(rank[0]) for rank in apart.rows) == [1, 1]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_partition_invariants_with_siblings(num_ranks: int) -> None:
    rng = np.random.default_rng(num_ranks)
    groups = np.repeat(np.arange(20), 8)
    groups[rng.integers(0, 160, 10)] = ALONE
    prefixes = np.where(groups == ALONE, 0, rng.integers(1, 300, 20)[groups])
    lengths = prefixes + rng.integers(1, 300, size=160)
    siblings = Siblings(groups=groups, prefixes=prefixes)
    plan = partition(lengths, num_ranks=num_ranks, token_budget=1024, siblings=siblings)
    assert {len(rank) for rank in plan.rows} == {plan.num_micro_batches}
    every = np.concatenate([part for rank in plan.rows for part in rank])
    assert sorted(every.tolist()) == list(range(160))
    for micro in (part for rank in plan.rows for part in rank):
        own = [micro[groups[micro] == group] for group in set(groups[micro].tolist()) - {ALONE}]
        tokens = lengths[micro[groups[micro] == ALONE]].sum()
        tokens += sum(computed_tokens(lengths, siblings, rows) for rows in own)
        assert tokens <= 1024
    assert plan.imbalance < 1.05
    assert plan.num_tokens < 0.8 * lengths.sum()


def test_rows_that_share_nothing_are_spread_as_before() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, size=50)
    plain = partition(lengths, num_ranks=3, token_budget=1024)
    same = partition(lengths, num_ranks=3, token_budget=1024, siblings=alone(50))
    for one, other in zip(plain.rows, same.rows, strict=True):
        assert [part.tolist() for part in one] == [part.tolist() for part in other]


def test_sixteen_thousand_siblings_in_time() -> None:
    rng = np.random.default_rng(0)
    lengths = 400 + rng.lognormal(6.5, 0.9, size=16_384).astype(int).clip(1, 15_000)
    begin = time.process_time()
    plan = partition(
        lengths,
        num_ranks=64,
        token_budget=16_384,
        cost=SequenceCost(quadratic=1e-4),
        siblings=grouped([8] * 2048, 400),
    )
    assert time.process_time() - begin < 5.0
    assert plan.imbalance < 1.05
