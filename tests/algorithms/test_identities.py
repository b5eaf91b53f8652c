"""Identities between algorithms (V2-V13): one loss reduces to another."""

import math
from dataclasses import replace

import pytest
import torch

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import FixedLength, TokenMean
from algorithms.algorithm import Algorithm
from algorithms.conformance.batches import gradient, metadata_of, random_inputs, total_loss
from algorithms.corrections import MaskedRatio, TruncatedRatio
from algorithms.gates import EntropyRatioClip
from algorithms.inputs import LossInputs
from algorithms.parts import Correction, Gate, PolicyLoss, Regularizer
from algorithms.policy_losses.clipped import ClippedRatio, Reinforce
from algorithms.policy_losses.cpgd import ClippedLogRatio
from algorithms.policy_losses.gppo import GradientPreservingClip
from algorithms.policy_losses.rpg import RegularizedPolicyGradient
from algorithms.policy_losses.sequence import GeometricMean, SequenceRatio
from algorithms.policy_losses.truncated import SoftAdaptive, TruncatedImportance
from algorithms.regularizers import PolicyDrift, ReferenceKL

OPEN = {"clip_low": 1.0, "clip_high": math.inf}


def composed(
    loss: PolicyLoss,
    *,
    gate: Gate | None = None,
    regularizer: Regularizer | None = None,
    correction: Correction | None = None,
) -> Algorithm:
    return Algorithm(
        name="identity",
        advantage=GroupRelative(),
        policy_loss=loss,
        aggregation=TokenMean(),
        gates={"gate": gate} if gate else {},
        regularizers={"regularizer": regularizer} if regularizer else {},
        correction=correction,
    )


def on_policy(inputs: LossInputs) -> LossInputs:
    return replace(
        inputs, old_logprobs=inputs.logprobs.detach(), old_entropy=inputs.entropy.detach()
    )


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def no_advantage(inputs: LossInputs) -> LossInputs:
    return replace(inputs, advantages=torch.zeros_like(inputs.advantages))


def value(loss: PolicyLoss, inputs: LossInputs) -> torch.Tensor:
    return composed(loss).token_loss(inputs).terms["policy"].detach()


@pytest.mark.parametrize(
    "loss",
    [
        ClippedRatio(),
        ClippedRatio(clip_high=0.28, dual_clip=10.0),
        TruncatedImportance(),
        SoftAdaptive(),
        SequenceRatio(),
        GeometricMean(),
        GradientPreservingClip(),
        ClippedLogRatio(schedule=0.5),
        Reinforce(importance_cap=2.0),
        RegularizedPolicyGradient(divergence="ufkl", beta=0.3),
        RegularizedPolicyGradient(divergence="urkl", beta=0.3),
        RegularizedPolicyGradient(divergence="urkl", style="differentiable", clip="dual", beta=0.3),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_v2_on_policy_everything_is_reinforce(loss: PolicyLoss) -> None:
    assert loss.on_policy_reinforce
    inputs = on_policy(random_inputs())
    gated = composed(loss, gate=EntropyRatioClip(), regularizer=PolicyDrift(coefficient=0.5))
    close(gradient(gated, inputs), -inputs.advantages)


@pytest.mark.parametrize(("divergence", "sign"), [("fkl", 1.0), ("rkl", -1.0)])
def test_v2_rpg_fkl_and_rkl_are_off_by_beta(divergence: str, sign: float) -> None:
    inputs = on_policy(random_inputs())
    loss = RegularizedPolicyGradient(divergence=divergence, beta=0.3)
    assert not loss.on_policy_reinforce
    expected = torch.where(inputs.loss_mask, -(inputs.advantages + sign * 0.3), 0.0)
    close(gradient(composed(loss), inputs), expected)


def test_v3_without_clip_and_kl_rpg_is_cispo_is_importance_weighted_pg() -> None:
    inputs = random_inputs()
    expected = gradient(composed(ClippedRatio(**OPEN)), inputs)
    others: list[PolicyLoss] = [
        TruncatedImportance(ratio_min=0.0, ratio_max=math.inf),
        Reinforce(importance_cap=math.inf),
        RegularizedPolicyGradient(clip="none", beta=0.0),
        RegularizedPolicyGradient(clip="none", style="differentiable", beta=0.0),
    ]
    for loss in others:
        close(gradient(composed(loss), inputs), expected)


def test_v4_cpgd_without_drift_and_clip_is_the_policy_gradient() -> None:
    inputs = random_inputs(spread=1.5)
    found = gradient(composed(ClippedLogRatio(**OPEN)), inputs)
    close(found, gradient(composed(Reinforce()), inputs))
    narrow = gradient(composed(ClippedLogRatio(clip_low=1.0, clip_high=1.0)), inputs)
    assert not torch.equal(narrow, found)  # a half-width of 1 still clips at w = 2


def test_v5_uncapped_drift_is_the_ufkl_gradient_and_that_of_k3() -> None:
    inputs = no_advantage(random_inputs(spread=1.0))
    drift = composed(Reinforce(), regularizer=PolicyDrift(coefficient=0.3, cap=math.inf))
    ufkl = RegularizedPolicyGradient(clip="none", style="differentiable", beta=0.3)
    close(gradient(drift, inputs), gradient(composed(ufkl), inputs))
    log_w = inputs.logprobs - inputs.old_logprobs
    k3 = 0.3 * (log_w.exp() - 1 - log_w)
    (expected,) = torch.autograd.grad(k3[inputs.loss_mask].sum(), inputs.logprobs)
    close(gradient(drift, inputs), expected)


def test_v6_ppo_is_w_times_cpgd_inside_the_gate() -> None:
    inputs = random_inputs(spread=1.0)
    w = (inputs.logprobs - inputs.old_logprobs).exp().detach()
    ppo, cpg = composed(ClippedRatio()), composed(ClippedLogRatio())
    close(gradient(ppo, inputs), w * gradient(cpg, inputs))


def test_v7_gppo_has_the_value_of_ppo_and_ce_gppo_its_gradient_at_zero() -> None:
    inputs = random_inputs(spread=1.0)
    ppo = ClippedRatio(dual_clip=10.0)
    close(value(GradientPreservingClip(), inputs), value(ppo, inputs))
    without = GradientPreservingClip(beta_low=0.0, beta_high=0.0)
    close(gradient(composed(without), inputs), gradient(composed(ppo), inputs))
    with_both = gradient(composed(GradientPreservingClip()), inputs)
    assert not torch.equal(with_both, gradient(composed(ppo), inputs))


def test_v8_erc_open_is_base_closed_is_no_gradient_with_the_same_value() -> None:
    inputs, base = random_inputs(), ClippedRatio()
    plain = composed(base)
    opened = composed(base, gate=EntropyRatioClip(low=1.0, high=math.inf))
    closed = composed(base, gate=EntropyRatioClip(low=0.0, high=0.0))
    close(gradient(opened, inputs), gradient(plain, inputs))
    assert gradient(closed, inputs).abs().sum() == 0.0
    close(closed.token_loss(inputs).terms["policy"].detach(), value(base, inputs))
    same = replace(inputs, old_entropy=inputs.entropy.detach())
    close(gradient(composed(base, gate=EntropyRatioClip()), same), gradient(plain, inputs))


@pytest.mark.parametrize("loss", [ClippedRatio(), GradientPreservingClip(), GeometricMean()])
def test_v8_erc_multiplies_the_gradient_of_any_loss_token_by_token(loss: PolicyLoss) -> None:
    inputs, gate = random_inputs(), EntropyRatioClip()
    keep = gate(inputs)
    assert keep.any()
    assert not keep.all()
    close(gradient(composed(loss, gate=gate), inputs), gradient(composed(loss), inputs) * keep)


def test_v9_gspo_of_one_token_is_ppo() -> None:
    inputs = random_inputs([1] * 9, spread=1.0)
    loss = SequenceRatio(clip_low=0.2, clip_high=0.2)
    close(gradient(composed(loss), inputs), gradient(composed(ClippedRatio()), inputs))


@pytest.mark.parametrize("kind", ["gspo", "gmpo"])
def test_v9_token_form_has_the_gradient_of_the_sequence_form(kind: str) -> None:
    lengths = [3, 5, 2, 7]
    inputs = random_inputs(lengths, spread=0.3)
    loss: PolicyLoss = SequenceRatio(clip_low=0.05, clip_high=0.05)
    loss = loss if kind == "gspo" else GeometricMean(log_clip=0.2)
    weight = 1.0 / (len(lengths) * torch.tensor(lengths, dtype=torch.float64))
    found = total_loss(composed(loss), inputs, {"policy": weight})
    expected = inputs.logprobs.new_zeros(())
    for index in range(len(lengths)):  # the papers' form, one sequence at a time
        rows = (inputs.sequence_ids == index) & inputs.loss_mask
        a = inputs.advantages[rows][0]
        log_w = (inputs.logprobs - inputs.old_logprobs)[rows]
        if kind == "gspo":
            s = log_w.mean().exp()
            expected = expected - torch.minimum(s * a, s.clamp(0.95, 1.05) * a) / len(lengths)
        else:
            clipped = torch.minimum(a.sign() * log_w, a.sign() * log_w.clamp(-0.2, 0.2)) * a.sign()
            expected = expected - clipped.mean().exp() * a / len(lengths)
    close(found.detach(), expected.detach())
    (grad,) = torch.autograd.grad(found, inputs.logprobs)
    (wanted,) = torch.autograd.grad(expected, inputs.logprobs)
    close(grad, wanted)


def test_v10_dr_grpo_is_token_mean_when_all_lengths_are_the_maximum() -> None:
    inputs = random_inputs([4, 4, 4])
    metadata = metadata_of(inputs, 3)
    torch.testing.assert_close(FixedLength(max_length=4)(metadata), TokenMean()(metadata))


def test_v13_unbounded_corrections_are_the_importance_ratio() -> None:
    inputs = random_inputs()
    truncated = TruncatedRatio(high=math.inf)(inputs)
    masked = MaskedRatio(low=0.0, high=math.inf)(inputs)
    close(truncated, masked)
    close(truncated, (inputs.old_logprobs - inputs.rollout_logprobs).exp())


def test_bypass_is_the_ratio_to_the_sampler() -> None:
    inputs = random_inputs()
    bypassed = replace(composed(ClippedRatio()), bypass=True)
    swapped = replace(inputs, old_logprobs=inputs.rollout_logprobs)
    close(gradient(bypassed, inputs), gradient(composed(ClippedRatio()), swapped))
    assert bypassed.required_columns == {"rollout_logprobs"}


def test_cpgd_schedule_and_epoch_correction() -> None:
    # lambda=0, e=.2, |y|=4: e_i = .05, .1, .15, .2. ln w = .12 passes ln(1+e_i) at i = 3, 4 only.
    base = random_inputs([4])
    log_w = torch.where(base.loss_mask, 0.12, 0.0).double()
    inputs = replace(
        base,
        logprobs=(base.old_logprobs + log_w).requires_grad_(),
        advantages=base.loss_mask.double(),
        epoch_logprobs=base.old_logprobs + math.log(1.1),
    )
    found = gradient(composed(ClippedLogRatio(schedule=0.0)), inputs)[inputs.loss_mask]
    close(found, torch.tensor([0.0, 0.0, -1.0, -1.0]).double())
    corrected = gradient(composed(ClippedLogRatio(epoch_correction=True)), inputs)
    close(corrected[inputs.loss_mask], torch.full((4,), -1.1, dtype=torch.float64))


def test_rpg_against_its_own_reference_equals_rpg_against_old_when_they_agree() -> None:
    inputs = random_inputs()
    same = replace(inputs, ref_logprobs=inputs.old_logprobs)
    for divergence in ("fkl", "ufkl", "rkl", "urkl"):
        old = RegularizedPolicyGradient(divergence=divergence, beta=0.3)
        ref = replace(old, reference="ref")
        assert ref.columns == {"old_logprobs", "ref_logprobs"}
        close(gradient(composed(ref), same), gradient(composed(old), inputs))
        far = gradient(composed(ref), inputs)
        assert divergence == "fkl" or not torch.equal(far, gradient(composed(old), inputs))


def test_reference_kl_gradients() -> None:
    # plain: beta (1 - ref/pi); differentiable: beta w ln(pi/ref); detached: beta w (1 - ref/pi).
    inputs = no_advantage(random_inputs())
    w = (inputs.logprobs - inputs.old_logprobs).exp().detach()
    log_v = (inputs.logprobs - inputs.ref_logprobs).detach()
    mask = inputs.loss_mask
    expected = {
        "none": 0.3 * (1 - (-log_v).exp()),
        "differentiable": 0.3 * w * log_v,
        "detached": 0.3 * w * (1 - (-log_v).exp()),
    }
    for importance, wanted in expected.items():
        kl = ReferenceKL(coefficient=0.3, importance=importance)
        close(gradient(composed(Reinforce(), regularizer=kl), inputs), wanted * mask)
