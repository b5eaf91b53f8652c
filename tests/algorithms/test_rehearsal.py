"""A fault of a user's part is found before anything starts."""

from dataclasses import dataclass

import pytest
import torch

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.conformance.rehearsal import rehearse
from algorithms.inputs import Credit, CreditInputs, LossInputs
from algorithms.parts import Advantage, PolicyLoss
from algorithms.policy_losses.clipped import ClippedRatio


@dataclass(frozen=True, kw_only=True)
class Mean(PolicyLoss):
    """A loss that reduces, which is the aggregation's task."""

    def __call__(self, inputs: LossInputs) -> torch.Tensor:
        return inputs.logprobs.mean()


@dataclass(frozen=True, kw_only=True)
class Divided(Advantage):
    """An advantage that divides by 0."""

    def __call__(self, inputs: CreditInputs) -> Credit:
        return Credit(advantages=inputs.shaped_rewards[inputs.sequence_ids] / 0.0)


def composed(**parts: object) -> Algorithm:
    defaults: dict[str, object] = {
        "name": "mine",
        "advantage": GroupRelative(),
        "policy_loss": ClippedRatio(),
        "aggregation": TokenMean(),
    }
    return Algorithm(**(defaults | parts))  # type: ignore[arg-type]


def test_what_is_measured_is_named() -> None:
    assert {"policy/ratio", "policy/clip_frac", "reference/kl"} <= rehearse(composed())


def test_a_wrong_shape_and_a_non_finite_advantage_are_found() -> None:
    with pytest.raises(ValueError, match=r"Mean returned shape \(\) for \(45,\) tokens; return"):
        rehearse(composed(policy_loss=Mean()))
    with pytest.raises(ValueError, match="advantages of Divided: .* are not finite"):
        rehearse(composed(advantage=Divided()))
