"""What parts see of a micro-batch: gradients on the policy alone, zeros where nothing trains."""

import math

import pytest
import torch

from algorithms.inputs import LossInputs
from algorithms.preparation import prepared, ratio_metrics

MASK = torch.tensor([False, True, True])


def column(*values):
    return torch.tensor(values, requires_grad=True)


def inputs(**changes):
    columns = {
        "logprobs": column(math.nan, -1.0, -2.0),  # what is masked may hold anything
        "old_logprobs": column(-9.0, -1.5, -2.0),
        "rollout_logprobs": column(-9.0, -1.25, -2.25),
        "ref_logprobs": column(-9.0, -3.0, -1.0),
        "advantages": column(5.0, 1.0, -1.0),
        "entropy": column(7.0, 0.5, 0.25),
        "loss_mask": MASK,
        "sequence_ids": torch.tensor([0, 0, 0]),
    }
    return LossInputs(**columns | changes)


def prepare(given, *, bypass=False, reference_is_old=False, entropy_gradient=False):
    return prepared(
        given,
        bypass=bypass,
        reference_is_old=reference_is_old,
        entropy_gradient=entropy_gradient,
    )


def test_masked_tokens_are_zero_and_only_the_policy_has_a_gradient():
    ready = prepare(inputs())
    assert ready.logprobs.tolist() == [0.0, -1.0, -2.0]
    assert ready.old_logprobs.tolist() == [0.0, -1.5, -2.0]
    assert ready.ref_logprobs.tolist() == [0.0, -3.0, -1.0]
    assert ready.advantages.tolist() == [0.0, 1.0, -1.0]
    assert ready.entropy.tolist() == [0.0, 0.5, 0.25]
    with_gradient = [
        name
        for name in ("logprobs", "old_logprobs", "ref_logprobs", "advantages", "entropy")
        if getattr(ready, name).requires_grad
    ]
    assert with_gradient == ["logprobs"]


def test_no_gradient_comes_back_through_a_masked_nan():
    given = inputs()
    prepare(given).logprobs.sum().backward()
    assert given.logprobs.grad.tolist() == [0.0, 1.0, 1.0]


def test_an_entropy_bonus_keeps_the_gradient_of_the_entropy():
    assert prepare(inputs(), entropy_gradient=True).entropy.requires_grad


def test_in_bypass_mode_the_sampler_is_the_old_policy():
    ready = prepare(inputs(old_logprobs=None), bypass=True)
    assert ready.old_logprobs.tolist() == [0.0, -1.25, -2.25]
    with pytest.raises(ValueError, match="'old_logprobs' is None"):
        prepare(inputs(old_logprobs=None))


def test_the_old_policy_may_be_the_reference():
    ready = prepare(inputs(ref_logprobs=None), reference_is_old=True)
    assert ready.ref_logprobs.tolist() == [0.0, -1.5, -2.0]


def test_metrics_are_of_the_ratios():
    metrics = ratio_metrics(prepare(inputs()), old_is_known=True)
    # log w = [0, 0.5, 0]; k3 of the old policy: w - 1 - log w
    w = math.exp(0.5)
    assert metrics["policy/ratio"].tolist() == pytest.approx([1.0, w, 1.0])
    assert metrics["policy/kl_old_k3"].tolist() == pytest.approx([0.0, w - 1.5, 0.0])
    assert not any(value.requires_grad for value in metrics.values())
    without = ratio_metrics(prepare(inputs(ref_logprobs=None)), old_is_known=True)
    assert "reference/kl" not in without
