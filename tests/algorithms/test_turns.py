"""Credit over turns: where rewards are placed, and what turns of siblings are compared with."""

import math
from dataclasses import replace

import pytest
import torch

from algorithms.advantages.outcome import GroupRelative
from algorithms.advantages.returns import GeneralizedAdvantage, ReinforcePlusPlus
from algorithms.advantages.turns import GroupInGroup
from algorithms.aggregations import GroupTokenMean, SequenceMean, TokenMean, by_rollout
from algorithms.algorithm import Algorithm
from algorithms.auxiliary import CorrectLikelihood
from algorithms.conformance.batches import credit_with_observations
from algorithms.conformance.checks import CheckFailed, observations
from algorithms.inputs import BatchMetadata, CreditInputs
from algorithms.policy_losses.clipped import ClippedRatio


def floats(*values):
    return torch.tensor(values, dtype=torch.float64)


def two_turns(**changes):
    """A prompt token, a turn of two tokens, an observation, a turn of one; reward 1, 0.25 early."""
    inputs = CreditInputs(
        shaped_rewards=floats(1.0),
        group_ids=torch.tensor([0]),
        sequence_ids=torch.zeros(5, dtype=torch.int64),
        loss_mask=torch.tensor([False, True, True, False, True]),
        turn_ids=torch.tensor([-1, 0, 0, -1, 1]),
        turn_rewards=floats(0.25, 0.0),
        turn_states=torch.tensor([7, 8]),
        values=floats(9.0, 0.5, 0.25, 9.0, 0.75),
    )
    return replace(inputs, **changes)


PLAIN = ReinforcePlusPlus(kl_coefficient=0.0, whiten="none")


def test_what_a_turn_earned_stands_on_its_last_token_and_the_rest_at_the_end():
    assert replace(PLAIN, gamma=0.5)(two_turns()).advantages.tolist() == [
        *(0.0, 0.5 * (0.25 + 0.5 * 0.75), 0.25 + 0.5 * 0.75),
        *(0.0, 0.75),
    ]
    # The rewards of a rollout's tokens add up to its reward, shaped or not.
    shaped = two_turns(shaped_rewards=floats(0.5))
    assert PLAIN(shaped).advantages.tolist() == [0.0, 0.5, 0.5, 0.0, 0.25]


def test_without_turn_rewards_all_is_earned_at_the_end():
    none = two_turns(turn_ids=None, turn_rewards=None, turn_states=None)
    zero = two_turns(turn_rewards=floats(0.0, 0.0))
    assert PLAIN(none).advantages.tolist() == PLAIN(zero).advantages.tolist() == [0, 1, 1, 0, 1]


def test_gae_steps_over_observations():
    advantage = GeneralizedAdvantage(lam=0.5, whiten="none")
    credit = advantage(two_turns())
    # deltas: 0.25 - 0.5; 0.25 + 0.75 - 0.25; 0.75 - 0.75
    assert credit.advantages.tolist() == [0.0, -0.25 + 0.5 * 0.75, 0.75, 0.0, 0.0]
    assert credit.returns is not None
    assert credit.returns.tolist() == [0.0, 0.125 + 0.5, 1.0, 0.0, 0.75]


def siblings(**changes):
    """Three rollouts of one group, a token for each turn, of 2, 1 and 2 turns.

    states   7 8 | 7 | 7 8      rewards 1 | 0 | 0
    """
    inputs = CreditInputs(
        shaped_rewards=floats(1.0, 0.0, 0.0),
        group_ids=torch.zeros(3, dtype=torch.int64),
        sequence_ids=torch.tensor([0, 0, 1, 2, 2]),
        loss_mask=torch.ones(5, dtype=torch.bool),
        turn_ids=torch.tensor([0, 1, 2, 3, 4]),
        turn_rewards=torch.zeros(5, dtype=torch.float64),
        turn_states=torch.tensor([7, 8, 7, 7, 8]),
    )
    return replace(inputs, **changes)


def test_gigpo_adds_what_a_turn_is_worth_among_turns_in_its_state():
    """Equations 3, 5, 7 and 8 by hand, without deviations: gamma 0.5, omega 2."""
    advantage = GroupInGroup(gamma=0.5, step_weight=2.0, normalise="none")
    found = advantage(siblings())
    # A^E: 1 - 1/3 and -1/3. Returns in state 7: 0.5, 0, 0, mean 1/6; in state 8: 1, 0, mean 0.5.
    expected = floats(
        2 / 3 + 2 * (0.5 - 1 / 6),
        2 / 3 + 2 * 0.5,
        -1 / 3 - 2 / 6,
        -1 / 3 - 2 / 6,
        -1 / 3 - 2 * 0.5,
    )
    torch.testing.assert_close(found.advantages, expected)
    assert found.metrics["credit/anchors_informative_frac"] == 1.0


def test_gigpo_divides_by_the_deviations_of_group_and_anchor():
    found = GroupInGroup(gamma=0.5, eps=0.0)(siblings()).advantages
    group = math.sqrt(1 / 3)  # unbiased, of 1, 0, 0
    state_7 = math.sqrt((0.25 / 3 * 2) / 2)  # of 0.5, 0, 0: squares sum to 1/6
    state_8 = math.sqrt(0.5)  # of 1, 0
    assert found[0].item() == pytest.approx(2 / 3 / group + (1 / 3) / state_7)
    assert found[1].item() == pytest.approx(2 / 3 / group + 0.5 / state_8)


def test_gigpo_without_common_states_is_the_credit_of_whole_rollouts():
    alone = siblings(turn_states=torch.arange(5))
    whole = GroupRelative(eps=1e-6)(alone).advantages
    torch.testing.assert_close(GroupInGroup()(alone).advantages, whole)
    # Equal labels in two groups are two states.
    apart = siblings(group_ids=torch.tensor([0, 1, 2]))
    assert GroupInGroup()(apart).advantages.tolist() == [0.0] * 5


@pytest.mark.parametrize("advantage", [GroupInGroup(), PLAIN, GeneralizedAdvantage()])
def test_observations_change_no_credit(advantage):
    assert observations(algorithm(advantage)) == "gaps of 0, 1 and 7 tokens"


class CountsAll(GroupRelative):
    """Divides by all tokens of the batch, observations included."""

    def __call__(self, inputs):
        credit = super().__call__(inputs)
        return replace(credit, advantages=credit.advantages / inputs.loss_mask.numel())


def test_credit_that_counts_observations_is_found():
    with pytest.raises(CheckFailed, match="observations of 1 tokens change the credit"):
        observations(algorithm(CountsAll()))
    assert credit_with_observations(7).loss_mask.sum() == 20


def algorithm(advantage, **changes):
    values = {"name": "test", "policy_loss": ClippedRatio(), "aggregation": TokenMean()}
    return Algorithm(advantage=advantage, **(values | changes))


def test_rows_of_one_rollout_weigh_as_one():
    """Rollout 5 has two rows of 2 and 4 tokens, rollout 6 one of 3; both of one group."""
    rows = BatchMetadata(
        lengths=torch.tensor([2, 4, 3]),
        group_ids=torch.tensor([9, 9, 9]),
        rewards=torch.tensor([1.0, 1.0, 0.0]),
        rollout_ids=torch.tensor([5, 5, 6]),
    )
    correct = {"correct": CorrectLikelihood()}
    weights = algorithm(
        GroupRelative(), aggregation=SequenceMean(), auxiliaries=correct
    ).sequence_weights(rows)
    torch.testing.assert_close(weights["policy"], torch.tensor([1 / 12, 1 / 12, 1 / 6]))
    torch.testing.assert_close(weights["correct"], torch.tensor([1 / 6, 1 / 6, 0.0]))
    means = algorithm(GroupRelative(), aggregation=GroupTokenMean()).sequence_weights(rows)
    torch.testing.assert_close(means["policy"], torch.full((3,), 1 / 9))


def test_a_batch_of_single_rows_is_left_as_it_is():
    rows = BatchMetadata(
        lengths=torch.tensor([2, 3]),
        group_ids=torch.tensor([0, 0]),
        rewards=torch.tensor([1.0, 0.0]),
        rollout_ids=torch.tensor([0, 1]),
    )
    assert by_rollout(rows) == (rows, None)
