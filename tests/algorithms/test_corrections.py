"""Mismatch factors against literal values; who is dropped; who stays in the denominator."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.conformance.batches import metadata_of, random_inputs, total_loss
from algorithms.corrections import (
    DivergenceRejection,
    MaskedRatio,
    OffPolicySequenceMask,
    ProbabilityMask,
    Product,
    SequenceVeto,
    TruncatedRatio,
)
from algorithms.inputs import LossInputs
from algorithms.parts import Correction
from algorithms.policy_losses.clipped import Reinforce

RHO = (0.15, 0.25, 0.6, 1.0, 1.9, 4.0, 6.0)


def at(ratios: tuple[float, ...], lengths: tuple[int, ...]) -> LossInputs:
    """Sequences of `lengths` tokens with the given pi_old / mu; no prompts."""
    rho = torch.tensor(ratios, dtype=torch.float64)
    rollout = torch.full_like(rho, -1.0)
    old = rollout + rho.log()
    return LossInputs(
        logprobs=old.clone().requires_grad_(),
        old_logprobs=old,
        rollout_logprobs=rollout,
        advantages=torch.ones_like(rho),
        loss_mask=torch.ones(rho.numel(), dtype=torch.bool),
        sequence_ids=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
    )


def expect(correction: Correction, inputs: LossInputs, expected: tuple[float, ...]) -> None:
    torch.testing.assert_close(
        correction(inputs), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        (TruncatedRatio(high=2.0), (0.15, 0.25, 0.6, 1.0, 1.9, 2.0, 2.0)),
        (TruncatedRatio(low=0.5, high=5.0), (0.5, 0.5, 0.6, 1.0, 1.9, 4.0, 5.0)),
        (MaskedRatio(), (0.0, 0.0, 0.6, 1.0, 1.9, 4.0, 0.0)),
        # verl's token_k1 "0.5_5.0" bounds mu / pi_old: in logs, k1 in [ln .5, ln 5]
        (
            DivergenceRejection(
                estimator="k1", level="token", low=math.log(0.5), high=math.log(5.0)
            ),
            (0, 1, 1, 1, 1, 0, 0),
        ),
        # k2 = ln(rho)^2 / 2: 1.80, .961, .130, 0, .206, .961, 1.61
        (DivergenceRejection(estimator="k2", level="token", high=0.5), (0, 0, 1, 1, 1, 0, 0)),
        # k3 = rho - 1 - ln rho: 1.05, .636, .111, 0, .258, 1.61, 3.21
        (DivergenceRejection(level="token", high=0.7), (0, 1, 1, 1, 1, 0, 0)),
    ],
)
def test_token_factors(correction: Correction, expected: tuple[float, ...]) -> None:
    expect(correction, at(RHO, (1,) * 7), expected)


def test_sequence_factors() -> None:
    inputs = at((2.0, 0.75, 1.0, 4.0, 1.0), (2, 2, 1))  # products 1.5, 4, 1; geometric 1.22, 2, 1
    expect(TruncatedRatio(level="sequence"), inputs, (1.5, 1.5, 2.0, 2.0, 1.0))
    expect(MaskedRatio(level="sequence", low=0.0, high=3.0), inputs, (1.5, 1.5, 0, 0, 1.0))
    expect(MaskedRatio(level="geometric", low=0.9, high=1.5), inputs, (2.0, 0.75, 0, 0, 1.0))
    expect(SequenceVeto(low=0.8), inputs, (0, 0, 1, 1, 1))
    expect(SequenceVeto(low=0.0, high=3.0), inputs, (1, 1, 0, 0, 1))
    both = Product(parts={"tis": TruncatedRatio(), "veto": SequenceVeto(low=0.8)})
    expect(both, inputs, (0, 0, 1.0, 2.0, 1.0))
    # mu = e^-1 = .368: |rho - 1| mu = .368, .092, 0, 1.10, 0
    expect(ProbabilityMask(eps=0.3), inputs, (0, 0.75, 1.0, 0, 1.0))
    # sums of -d: -.405, -1.386, 0; largest k1: .288, 0, 0
    k1 = DivergenceRejection(estimator="k1", level="sequence_sum", low=-1.0, high=1.0)
    expect(k1, inputs, (1, 1, 0, 0, 1))
    expect(replace(k1, level="sequence_mean", low=-0.5), inputs, (1, 1, 0, 0, 1))
    expect(replace(k1, level="sequence_max", high=0.2), inputs, (0, 0, 1, 1, 1))


def test_opsm_drops_bad_responses_that_the_policy_has_left() -> None:
    inputs = at((1.0,) * 6, (2, 2, 2))
    moved = replace(
        inputs,
        logprobs=(inputs.old_logprobs + torch.tensor([-0.3, -0.1, -0.3, -0.1, -0.1, 0.0]).double()),
        advantages=torch.tensor([-1, -1, 1, 1, -1, -1]).double(),
    )
    expect(OffPolicySequenceMask(delta=0.1), moved, (0, 0, 1, 1, 1, 1))


@pytest.mark.parametrize(
    "correction",
    [
        TruncatedRatio(),
        TruncatedRatio(level="sequence"),
        MaskedRatio(level="geometric"),
        SequenceVeto(low=0.9),
        OffPolicySequenceMask(),
        DivergenceRejection(level="sequence_max"),
    ],
)
def test_prompt_tokens_never_decide(correction: Correction) -> None:
    inputs = random_inputs()
    other = torch.where(inputs.loss_mask, inputs.rollout_logprobs, -9.0)
    mask = inputs.loss_mask
    changed = correction(replace(inputs, rollout_logprobs=other))
    torch.testing.assert_close(changed[mask], correction(inputs)[mask])
    assert not correction(inputs).requires_grad


def reinforce(correction: Correction | None) -> Algorithm:
    return Algorithm(
        name="denominator",
        advantage=GroupRelative(),
        policy_loss=Reinforce(),
        aggregation=TokenMean(),
        correction=correction,
    )


def test_dropped_tokens_stay_in_the_denominator() -> None:
    # Four tokens of advantage 1, two of them dropped: gradients -1/4 * factor, not -1/2.
    inputs = at((1.0, 9.0, 1.0, 9.0), (2, 2))
    algorithm = reinforce(MaskedRatio())
    weights = dict(algorithm.sequence_weights(metadata_of(inputs, 2)))
    total_loss(algorithm, inputs, weights).backward()
    grad = inputs.logprobs.grad
    assert isinstance(grad, Tensor)
    torch.testing.assert_close(grad, torch.tensor([-0.25, 0.0, -0.25, 0.0]).double())
    dropped = algorithm.token_loss(inputs).metrics["mismatch/dropped_frac"]
    assert dropped.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_bypass_and_a_correction_would_count_twice() -> None:
    with pytest.raises(ValueError, match="counts pi_old / mu twice"):
        replace(reinforce(MaskedRatio()), bypass=True)
