"""Metadata to plans: whole groups per update, every row once, one division over all ranks."""

from dataclasses import replace

import numpy as np
import pytest

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.policy_losses.clipped import ClippedRatio
from orchestrator.step.batch import assemble, batch_metrics, plan_updates, reward_inputs
from orchestrator.step.partition import SequenceCost
from workers.data.trajectory import RolloutGroup, TrajectoryMeta

ALGORITHM = Algorithm(
    name="test",
    advantage=GroupRelative(),
    policy_loss=ClippedRatio(clip_low=0.2, clip_high=0.2),
    aggregation=TokenMean(),
)


def meta(group, k, *, reward=1.0, outcome="scored", num_trained=3, version=4):
    return TrajectoryMeta(
        prompt_uid=group,
        group_id=group,
        rollout_id=f"{group}/{k}",
        num_tokens=5 + num_trained,
        num_trained=num_trained,
        num_sampled=num_trained,
        finish_reason="stop",
        outcome=outcome,
        reward=reward if outcome == "scored" else None,
        reward_parts={},
        min_version=version,
        max_version=version,
        generate_s=0.1,
        reward_s=0.01,
        num_prompt=5,
        prompt_crc=int(group[1:]),
    )


def groups(count=4, size=3):
    """Two groups per object-store batch; sample 1 of group g1 failed."""
    made = []
    for number in range(count):
        metas = tuple(
            meta(
                f"g{number}",
                k,
                reward=float(k == 0),
                num_trained=1 + k + number,
                outcome="failed:timeout" if (number, k) == (1, 1) else "scored",
            )
            for k in range(size)
        )
        made.append(
            RolloutGroup(
                group_id=f"g{number}",
                metas=metas,
                batch=f"batch{number // 2}",
                start=size * (number % 2),
            )
        )
    return made


def test_rows_and_slices_leave_failures_out():
    batch = assemble(groups(), ALGORITHM)
    assert len(batch.metas) == 11 and batch.num_groups == 4
    assert batch.batches == ("batch0", "batch1")
    assert [(s.batch, s.start, s.length) for s in batch.slices] == [(0, 0, 4), (0, 5, 1), (1, 0, 6)]
    assert batch.rewards.tolist() == [1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("num_updates", [1, 2, 4])
@pytest.mark.parametrize("token_budget", [12, 1000])
def test_every_row_once_and_weights_sum_to_one(num_ranks, num_updates, token_budget):
    batch = assemble(groups(), ALGORITHM)
    plan = plan_updates(
        batch,
        ALGORITHM,
        groups_per_update=4 // num_updates,
        num_ranks=num_ranks,
        token_budget=token_budget,
        cost=SequenceCost(linear=1.0, quadratic=0.01),
    )
    assert len(plan.ranks) == num_ranks
    seen = []
    for update in range(num_updates):
        counts = {len(rank.updates[update]) for rank in plan.ranks}
        assert len(counts) == 1  # every rank runs equally many micro-batches
        total, members = 0.0, set()
        for rank in plan.ranks:
            for micro in rank.updates[update]:
                assert sum(batch.metas[row].num_tokens for row in micro.rows) <= token_budget
                # token mean: the weights of all trained tokens of an update sum to 1
                total += float(batch.lengths[micro.rows] @ micro.weights["policy"])
                seen += micro.rows.tolist()
                members |= {int(batch.group_ids[row]) for row in micro.rows}
        assert total == pytest.approx(1.0, rel=1e-6)
        assert len(members) == 4 // num_updates  # whole groups
    assert sorted(seen) == list(range(11))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_every_pass_holds_every_row_once_in_an_order_of_its_own(num_ranks):
    batch = assemble(groups(count=8), ALGORITHM)

    def planned(*seed):
        return plan_updates(
            batch,
            ALGORITHM,
            groups_per_update=2,
            num_passes=3,
            num_ranks=num_ranks,
            token_budget=1000,
            cost=SequenceCost(linear=1.0, quadratic=0.01),
            seed=seed,
        )

    def members(plan, update):
        micros = [micro for rank in plan.ranks for micro in rank.updates[update]]
        return frozenset(int(batch.group_ids[row]) for micro in micros for row in micro.rows)

    plan = planned(0, 1)
    assert plan.metrics["learner/updates"] == 12
    assert plan.metrics["learner/micro_batch_fill_frac"] <= 1.0
    for number in range(3):
        passes = [rank.passes[number] for rank in plan.ranks]
        rows = [r for once in passes for micro in once.micro_batches for r in micro.rows]
        assert sorted(rows) == list(range(len(batch.metas)))
        assert len(passes[0].updates) == 4
    scored = [r for rank in plan.ranks for micro in rank.micro_batches for r in micro.rows]
    assert sorted(scored) == list(range(len(batch.metas)))  # the first pass alone
    orders = [[members(plan, 4 * number + u) for u in range(4)] for number in range(3)]
    assert orders[0] == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    assert orders[1] != orders[0]
    assert orders[2] != orders[1]
    again, other = planned(0, 1), planned(0, 2)
    assert [members(again, u) for u in range(12)] == [u for order in orders for u in order]
    assert [members(other, u) for u in range(12)] != [u for order in orders for u in order]


def test_metrics_of_a_batch():
    metrics = batch_metrics(assemble(groups(), ALGORITHM), version=5)
    assert metrics["reward/mean"] == pytest.approx(4 / 11)
    assert metrics["staleness/max"] == 1.0
    assert metrics["rollout/tokens"] == sum(
        1 + k + n for n in range(4) for k in range(3) if (n, k) != (1, 1)
    )
    assert np.isfinite(list(metrics.values())).all()


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("token_budget", [14, 1000])
def test_shared_prompts_are_counted_once_in_a_micro_batch(num_ranks, token_budget):
    batch = assemble(groups(), ALGORITHM)
    plans = {
        shared: plan_updates(
            batch,
            ALGORITHM,
            groups_per_update=2,
            num_ranks=num_ranks,
            token_budget=token_budget,
            cost=SequenceCost(linear=1.0),
            share_prefixes=shared,
        )
        for shared in (False, True)
    }
    computed, rows, weights = 0, [], {}
    for rank in plans[True].ranks:
        for micro in rank.micro_batches:
            prompts = len(np.unique(micro.groups))
            tokens = 5 * prompts + int(batch.lengths[micro.rows].sum())
            assert tokens <= token_budget
            computed += tokens
            rows += micro.rows.tolist()
            weights |= zip(micro.rows.tolist(), micro.weights["policy"].tolist(), strict=True)
            # rows of an equal number are of one group, and the other way round
            pairs = zip(micro.groups.tolist(), batch.group_ids[micro.rows].tolist(), strict=True)
            assert len(set(pairs)) == prompts
    assert sorted(rows) == list(range(11))
    whole = sum(item.num_tokens for item in batch.metas)
    saved = plans[True].metrics["learner/shared_prefix_frac"]
    # Less than what is saved where two pieces of a group meet in a micro-batch.
    assert 0 < saved <= 1 - computed / whole + 1e-9
    assert plans[False].metrics["learner/shared_prefix_frac"] == 0
    for rank in plans[False].ranks:
        for micro in rank.micro_batches:
            assert micro.groups is None
            for row, weight in zip(micro.rows, micro.weights["policy"], strict=True):
                assert weights[int(row)] == weight  # the division changes no weight


def updates_of(batch, **more):
    """Groups of each update of a plan for one rank."""
    plan = plan_updates(
        batch,
        ALGORITHM,
        num_ranks=1,
        token_budget=1000,
        cost=SequenceCost(),
        **more,
    )
    return [
        sorted({int(batch.group_ids[row]) for micro in update for row in micro.rows})
        for update in plan.ranks[0].updates
    ]


@pytest.mark.parametrize(
    ("count", "sizes"), [(16, [16]), (2, [2]), (23, [23]), (24, [12, 12]), (64, [16] * 4)]
)
def test_a_batch_of_few_groups_has_fewer_updates_and_not_smaller_ones(count, sizes):
    updates = updates_of(assemble(groups(count=count), ALGORITHM), groups_per_update=16)
    assert [len(update) for update in updates] == sizes


def test_groups_that_came_in_the_order_of_their_length_are_shuffled_by_the_seed():
    batch = assemble(groups(count=8), ALGORITHM)
    in_order = [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert updates_of(batch, groups_per_update=2) == in_order
    shuffled = updates_of(batch, groups_per_update=2, shuffled=True, seed=(0, 1))
    assert shuffled != in_order
    assert sorted(group for update in shuffled for group in update) == list(range(8))
    assert shuffled == updates_of(batch, groups_per_update=2, shuffled=True, seed=(0, 1))
    assert shuffled != updates_of(batch, groups_per_update=2, shuffled=True, seed=(0, 2))


def test_rows_of_one_rollout_share_its_length_and_its_weight():
    """Rollout g0/0 has two rows of 2 and 4 sampled tokens, g0/1 one of 3."""
    rows = [
        meta("g0", 0, num_trained=2),
        meta("g0", 0, num_trained=4),
        meta("g0", 1, num_trained=3),
    ]
    group = RolloutGroup(group_id="g0", metas=tuple(rows), batch="batch", start=0)
    batch = assemble([group], ALGORITHM)
    assert batch.rollout_ids is not None
    assert batch.rollout_ids.tolist() == [0, 0, 1]
    assert reward_inputs(batch.metas).response_lengths.tolist() == [6, 6, 3]
    metrics = batch_metrics(batch, version=4)
    assert (metrics["rollout/sequences"], metrics["rollout/response_tokens_mean"]) == (2, 4.5)
    one = replace(group, metas=group.metas[:2])
    assert one.too_few(samples_per_prompt=8) == "scored"  # two rows are not two siblings
