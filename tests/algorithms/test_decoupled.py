"""Parts of a reward, each normalised for itself: values by hand."""

import math

import pytest
import torch

from algorithms.advantages.decoupled import DecoupledGroupRelative
from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.composition import check_parts
from algorithms.inputs import CreditInputs
from algorithms.policy_losses.clipped import ClippedRatio
from algorithms.rewards import ClipReward

ROOT_HALF = math.sqrt(0.5)  # (1 - 0.5) / the unbiased deviation of {0, 1}


def inputs(parts, *, group_size=2):
    """One trained token for each response; the whole reward is the sum of the parts."""
    values = {name: torch.tensor(part) for name, part in parts.items()}
    total = torch.stack(list(values.values())).sum(dim=0)
    return CreditInputs(
        shaped_rewards=total,
        group_ids=torch.arange(len(total)) // group_size,
        sequence_ids=torch.arange(len(total)),
        loss_mask=torch.ones(len(total), dtype=torch.bool),
        reward_parts=values,
    )


PARTS = {"right": [1.0, 0.0, 1.0, 1.0], "short": [0.0, 1.0, 1.0, 0.0]}


def test_each_part_is_normalised_in_its_group_then_weighted_added_and_whitened():
    rule = DecoupledGroupRelative(weights={"right": 1.0, "short": 0.5}, eps=0.0)
    credit = rule(inputs(PARTS))
    # Group 0: sqrt(1/2) (1 - 0.5) = 0.354; group 1: right is equal, short gives 0.5 sqrt(1/2).
    # Their unbiased deviation over the batch is sqrt(4 * 0.125 / 3) = 0.408.
    assert credit.advantages.tolist() == pytest.approx([0.8660, -0.8660, 0.8660, -0.8660], abs=1e-4)
    assert credit.metrics["credit/part/right/informative_groups_frac"] == 0.5
    assert credit.metrics["credit/part/short/informative_groups_frac"] == 1.0


def test_parts_that_oppose_each_other_cancel_and_an_equal_part_adds_exactly_nothing():
    rule = DecoupledGroupRelative(weights={"right": 1.0, "short": 1.0}, whiten="none", eps=0.0)
    found = rule(inputs(PARTS)).advantages.tolist()
    assert found == pytest.approx([0.0, 0.0, ROOT_HALF, -ROOT_HALF])
    assert found[:2] == [0.0, 0.0]


def test_two_parts_count_twice_where_the_sum_counts_once():
    """Sums 0 and 1 of one group, 0 and 2 of another: GRPO gives both the same advantages."""
    batch = inputs({"right": [0.0, 1.0, 0.0, 1.0], "short": [0.0, 0.0, 0.0, 1.0]})
    each = DecoupledGroupRelative(weights={"right": 1, "short": 1}, whiten="none", eps=0.0)
    summed = DecoupledGroupRelative(
        weights={"right": 1, "short": 1}, normalise="sum", whiten="none", eps=0.0
    )
    assert each(batch).advantages.tolist() == pytest.approx(
        [-ROOT_HALF, ROOT_HALF, -2 * ROOT_HALF, 2 * ROOT_HALF]
    )
    grpo = GroupRelative(eps=0.0)(batch).advantages
    assert torch.allclose(summed(batch).advantages, grpo)
    assert grpo.tolist() == pytest.approx([-ROOT_HALF, ROOT_HALF, -ROOT_HALF, ROOT_HALF])


def test_without_names_the_whole_reward_is_the_only_part():
    batch = inputs(PARTS)
    rule = DecoupledGroupRelative(whiten="none")
    assert torch.equal(rule(batch).advantages, GroupRelative()(batch).advantages)
    assert rule.reward_parts == ()


def algorithm(**changes):
    return Algorithm(
        name="parts",
        advantage=DecoupledGroupRelative(weights={"right": 1.0}),
        policy_loss=ClippedRatio(),
        aggregation=TokenMean(),
        **changes,
    )


def test_a_part_that_the_scorer_does_not_return_is_named_before_credit():
    rewards, group_ids = torch.tensor([1.0, 0.0]), torch.tensor([0, 0])
    parts = [{"right": 1.0}, {"right": 0.0}]
    assert algorithm().keep_groups(rewards, group_ids, parts).tolist() == [True]
    with pytest.raises(ValueError, match="advantage reads 'right', which is no part of every"):
        algorithm().keep_groups(rewards, group_ids, [{"exact": 1.0}, {"exact": 0.0}])


def test_a_rule_of_the_whole_reward_may_be_shaped():
    check_parts(DecoupledGroupRelative(), ["clip"])
    check_parts(DecoupledGroupRelative(weights={"right": 1.0}), [])


def test_shaping_of_a_reward_that_is_not_read_is_refused():
    with pytest.raises(ValueError, match="not the whole reward, which reward_shaping.clip changes"):
        algorithm(reward_shaping={"clip": ClipReward()})


@pytest.mark.parametrize(
    "wrong", [{"normalise": "all"}, {"whiten": "tokens"}, {"eps": -1.0}], ids=str
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DecoupledGroupRelative(**wrong)
