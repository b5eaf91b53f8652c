"""Aggregations: literal weights, and gradients that ignore micro-batches, ranks and order."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import (
    FixedLength,
    GroupTokenMean,
    SequenceMean,
    SequenceSum,
    TokenMean,
)
from algorithms.algorithm import Algorithm
from algorithms.auxiliary import CorrectLikelihood
from algorithms.conformance.batches import (
    LENGTHS,
    metadata_of,
    random_inputs,
    select_sequences,
    total_loss,
)
from algorithms.gates import EntropyRatioClip
from algorithms.inputs import BatchMetadata
from algorithms.parts import Aggregation, PolicyLoss
from algorithms.policy_losses.clipped import ClippedRatio
from algorithms.policy_losses.sequence import SequenceRatio
from algorithms.regularizers import PolicyDrift, ReferenceKL

# 2 prompts, 4 responses of 2, 0, 3, 5 trainable tokens; the first and last are correct.
METADATA = BatchMetadata(
    lengths=torch.tensor([2, 0, 3, 5]),
    group_ids=torch.tensor([7, 7, 9, 9]),
    rewards=torch.tensor([1.0, 1.0, 0.0, 1.0]),
)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        (TokenMean(), (1 / 10, 1 / 10, 1 / 10, 1 / 10)),
        (SequenceMean(), (1 / 8, 0.0, 1 / 12, 1 / 20)),
        (SequenceSum(), (1 / 4, 1 / 4, 1 / 4, 1 / 4)),
        (FixedLength(max_length=20), (1 / 80, 1 / 80, 1 / 80, 1 / 80)),
        (GroupTokenMean(), (1 / 4, 1 / 4, 1 / 16, 1 / 16)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Aggregation) else "",
)
def test_weights(aggregation: Aggregation, expected: tuple[float, ...]) -> None:
    torch.testing.assert_close(aggregation(METADATA), torch.tensor(expected))


def test_likelihood_of_correct_responses_has_its_own_denominator() -> None:
    weights = CorrectLikelihood().weights(METADATA)
    torch.testing.assert_close(weights, torch.tensor([1 / 7, 1 / 7, 0.0, 1 / 7]))
    none_correct = replace(METADATA, rewards=torch.zeros(4))
    assert CorrectLikelihood().weights(none_correct).abs().sum() == 0.0


@pytest.mark.parametrize(
    "aggregation", [TokenMean(), SequenceMean(), SequenceSum(), GroupTokenMean()]
)
def test_a_batch_without_trainable_tokens_has_finite_weights(aggregation: Aggregation) -> None:
    empty = replace(METADATA, lengths=torch.zeros(4, dtype=torch.int64))
    assert torch.isfinite(aggregation(empty)).all()


def composed(loss: PolicyLoss, aggregation: Aggregation) -> Algorithm:
    return Algorithm(
        name="reduction",
        advantage=GroupRelative(),
        policy_loss=loss,
        aggregation=aggregation,
        gates={"erc": EntropyRatioClip()},
        regularizers={"drift": PolicyDrift(), "kl": ReferenceKL()},
        auxiliaries={"correct": CorrectLikelihood()},
    )


def batch_gradient(algorithm: Algorithm, splits: Sequence[Sequence[int]]) -> Tensor:
    """Summed gradient of one optimizer batch, trained in the given micro-batches."""
    inputs = random_inputs()
    everything = algorithm.sequence_weights(metadata_of(inputs, len(LENGTHS)))
    assert inputs.logprobs.grad is None
    for order in splits:
        weights = {name: weight[list(order)] for name, weight in everything.items()}
        total_loss(algorithm, select_sequences(inputs, order), weights).backward()
    grad = inputs.logprobs.grad
    assert isinstance(grad, Tensor)
    return grad


@pytest.mark.parametrize(
    "aggregation",
    [TokenMean(), SequenceMean(), SequenceSum(), FixedLength(max_length=9), GroupTokenMean()],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("loss", [ClippedRatio(), SequenceRatio()], ids=["ppo", "gspo"])
def test_v11_gradient_ignores_micro_batches_and_order(
    loss: PolicyLoss, aggregation: Aggregation
) -> None:
    algorithm = composed(loss, aggregation)
    whole = batch_gradient(algorithm, [range(8)])
    assert whole.abs().sum() > 0
    for splits in (
        [[0, 1, 2], [3], [4, 5, 6, 7]],
        [[7, 3, 5, 1], [2, 0, 6, 4]],
        [[s] for s in range(8)],
    ):
        torch.testing.assert_close(batch_gradient(algorithm, splits), whole, rtol=1e-12, atol=1e-12)


def test_v11_a_local_mean_would_fail_this() -> None:
    # The per-micro-batch token mean of much released code: 3 and 5 tokens, A = 1.
    # (1/2)(1/3) = .1667 and (1/2)(1/5) = .1 per token, against 1/8 = .125.
    local = torch.tensor([1 / 6, 1 / 10])
    weights = TokenMean()(replace(METADATA, lengths=torch.tensor([3, 5, 0, 0])))
    torch.testing.assert_close(weights[:2], torch.tensor([0.125, 0.125]))
    assert not torch.allclose(weights[:2], local)
