"""Flags of tokens: golden marks by ratio, sign of the advantage and ratio of entropies."""

import math

import pytest
import torch

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.conformance.batches import gradient, random_inputs
from algorithms.corrections import MaskedRatio
from algorithms.flags import CLIPPED, DROPPED, GATED, token_flags
from algorithms.gates import EntropyRatioClip, ProbabilityClip
from algorithms.inputs import LossInputs
from algorithms.policy_losses.clipped import ClippedRatio, Reinforce
from algorithms.policy_losses.cpgd import ClippedLogRatio
from algorithms.policy_losses.rpg import RegularizedPolicyGradient
from algorithms.policy_losses.sequence import SequenceRatio
from algorithms.policy_losses.truncated import TruncatedImportance

RATIOS = (0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 4.0)
OLD = -5.0


def algorithm(loss=None, **parts):
    return Algorithm(
        name="flagged",
        advantage=GroupRelative(),
        policy_loss=loss or ClippedRatio(clip_low=0.2, clip_high=0.2),
        aggregation=TokenMean(),
        **parts,
    )


def inputs(advantage=1.0, *, ratios=RATIOS, **columns):
    """One response whose first token does not train; the others have the given ratios."""
    num = 1 + len(ratios)
    log_ratios = torch.tensor([math.nan, *(math.log(ratio) for ratio in ratios)])
    return LossInputs(
        **{
            "logprobs": (OLD + log_ratios).requires_grad_(),
            "old_logprobs": torch.full((num,), OLD),
            "advantages": torch.full((num,), advantage),
            "loss_mask": torch.arange(num) > 0,
            "sequence_ids": torch.zeros(num, dtype=torch.int64),
            **columns,
        }
    )


def flags(made, given):
    found = made.token_loss(given).flags
    assert found.dtype == torch.uint8
    assert not found.requires_grad
    return found.tolist()


def test_ppo_with_a_clip_of_a_fifth_clips_high_ratios_of_good_tokens_and_low_ones_of_bad():
    assert flags(algorithm(), inputs(1.0)) == [0, 0, 0, 0, 0, 0, CLIPPED, CLIPPED]
    assert flags(algorithm(), inputs(-1.0)) == [0, CLIPPED, CLIPPED, 0, 0, 0, 0, 0]
    assert flags(algorithm(), inputs(0.0)) == [0] * 8


def test_a_dual_clip_clips_bad_tokens_of_far_too_high_ratios():
    dual = algorithm(ClippedRatio(dual_clip=3.0))
    assert flags(dual, inputs(-1.0)) == [0, CLIPPED, CLIPPED, 0, 0, 0, 0, CLIPPED]


def test_erc_gates_where_the_ratio_of_entropies_leaves_its_bounds():
    """H / H_old = [0.9, 0.96, 1.0, 1.04, 1.1], bounds 0.05; of the last the loss clips too."""
    erc = algorithm(gates={"erc": EntropyRatioClip(low=0.05, high=0.05)})
    given = inputs(
        1.0,
        ratios=(1.0, 1.0, 1.0, 1.0, 1.5),
        entropy=torch.tensor([9.0, 0.9, 0.96, 1.0, 1.04, 1.1]),
        old_entropy=torch.ones(6),
    )
    assert flags(erc, given) == [0, GATED, 0, 0, 0, GATED | CLIPPED]


def test_any_of_several_gates_marks_a_token():
    gates = {"erc": EntropyRatioClip(), "dppo": ProbabilityClip(high=0.2)}
    given = inputs(
        1.0,
        ratios=(1.0, 1.0, 2.0),
        logprobs=torch.tensor([0.0, -1.0, -1.0, -0.1]),
        old_logprobs=torch.tensor([0.0, -1.0, -1.0, -1.0]),  # e^-0.1 - e^-1 = 0.54 > 0.2
        entropy=torch.tensor([0.0, 1.0, 2.0, 1.0]),
        old_entropy=torch.ones(4),
    )
    assert flags(algorithm(Reinforce(), gates=gates), given) == [0, 0, GATED, GATED]


def test_a_correction_marks_the_tokens_that_it_drops():
    masked = algorithm(Reinforce(), correction=MaskedRatio(low=0.5, high=5.0))
    given = inputs(
        1.0,
        ratios=(1.0, 1.0, 1.0),
        rollout_logprobs=OLD - torch.tensor([0.0, -1.0, 0.0, 2.0]),  # pi_old / mu: e^-1, 1, e^2
    )
    assert flags(masked, given) == [0, DROPPED, 0, DROPPED]


def test_a_loss_without_a_clip_marks_nothing():
    for loss in (Reinforce(), TruncatedImportance()):  # CISPO bounds a weight, every token trains
        assert set(flags(algorithm(loss), inputs(1.0))) == {0}


@pytest.mark.parametrize(
    "loss",
    [
        ClippedRatio(dual_clip=2.0),
        ClippedLogRatio(),
        ClippedLogRatio(schedule=0.5),
        SequenceRatio(clip_low=0.02, clip_high=0.02),
        RegularizedPolicyGradient(),
    ],
)
def test_clipped_tokens_are_those_without_a_gradient(loss):
    given = random_inputs(spread=0.5)
    made = algorithm(loss)
    clipped = made.token_loss(given).flags == CLIPPED
    cut = given.loss_mask & (given.advantages != 0) & (gradient(made, given) == 0)
    assert clipped.any()
    assert torch.equal(clipped, cut)


def test_the_worked_example_of_the_flags():
    found = token_flags(
        {"policy/clip_frac": torch.tensor([0.0, 1.0, 0.0, 1.0])},
        loss_mask=torch.tensor([True, True, True, False]),
        kept=torch.tensor([True, False, True, False]),
        factor=torch.tensor([1.0, 1.0, 0.0, 1.0]),
    )
    assert found.tolist() == [0, 3, 4, 0]
