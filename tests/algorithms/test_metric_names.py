"""Metrics of an algorithm: each name once, and only what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.conformance.batches import random_inputs
from algorithms.conformance.rehearsal import rehearse
from algorithms.inputs import Credit, CreditInputs, LossInputs
from algorithms.policy_losses.clipped import ClippedRatio, Reinforce
from algorithms.regularizers import PolicyDrift, ReferenceKL

PLAIN = Algorithm(
    name="plain",
    advantage=GroupRelative(),
    policy_loss=Reinforce(),
    aggregation=TokenMean(),
)


def test_a_loss_that_reads_no_old_policy_reports_no_ratio() -> None:
    """Its `old_logprobs` are the current ones: the ratio would be 1 and the KL 0 for ever."""
    inputs = random_inputs()
    current = replace(inputs, old_logprobs=inputs.logprobs.detach())
    assert "policy/ratio" not in PLAIN.token_loss(current).metrics
    assert "policy/kl_old_k3" not in PLAIN.token_loss(current).metrics
    clipped = replace(PLAIN, policy_loss=ClippedRatio())
    assert "policy/ratio_max" in clipped.token_loss(inputs).metrics


def test_two_parts_with_one_metric_are_refused_before_a_run() -> None:
    twice = replace(PLAIN, regularizers={"near": ReferenceKL(), "far": ReferenceKL()})
    with pytest.raises(ValueError, match="both measure 'policy/kl_ref_k3'.*leave one"):
        rehearse(twice)
    rehearse(replace(PLAIN, regularizers={"near": ReferenceKL(), "drift": PolicyDrift()}))


@dataclass(frozen=True, kw_only=True)
class OddlyNamed(Reinforce):
    """A loss with one metric, of a name that a run uses itself."""

    metric: str = "loss"

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        return {self.metric: torch.ones_like(inputs.logprobs)}


@pytest.mark.parametrize("name", ["loss", "num_tokens", "learner/grad_norm"])
def test_a_name_of_the_framework_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"OddlyNamed measures '{name}'.*call it policy/"):
        rehearse(replace(PLAIN, policy_loss=OddlyNamed(metric=name)))


class Talkative(GroupRelative):
    """An advantage that measures what the loss measures."""

    def __call__(self, inputs: CreditInputs) -> Credit:
        credit = super().__call__(inputs)
        return replace(credit, metrics={"policy/mine": 1.0})


def test_credit_and_loss_do_not_measure_one_name() -> None:
    algorithm = replace(PLAIN, advantage=Talkative(), policy_loss=OddlyNamed(metric="policy/mine"))
    with pytest.raises(ValueError, match="Talkative and a part of the loss both measure"):
        rehearse(algorithm)
