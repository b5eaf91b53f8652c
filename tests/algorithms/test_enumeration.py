"""Exact enumeration (V14-V21): expected loss gradients against gradients of the objectives.

Bandit: V = 6 actions, pi = softmax(theta), old policy random. Expectations are sums over actions,
with every action as a sequence of one token. Sequence task: V = 3 tokens, T = 3 steps, tabular
autoregressive policy over prefixes, 27 sequences. Everything in float64, tolerance 1e-10.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from algorithms.corrections import TruncatedRatio
from algorithms.inputs import LossInputs
from algorithms.kl import estimate
from algorithms.parts import PolicyLoss
from algorithms.policy_losses.clipped import ClippedRatio
from algorithms.policy_losses.rpg import RegularizedPolicyGradient
from algorithms.regularizers import PolicyDrift, ReferenceKL

BETA = 0.3
DIVERGENCES = ("fkl", "ufkl", "rkl", "urkl")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


THETA, OLD, REF, MU = (draw(seed, 6) for seed in (1, 2, 3, 4))
REWARD = draw(5, 6)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def tokens(
    logprobs: Tensor, old: Tensor, advantages: Tensor, *, ref: Tensor | None = None
) -> LossInputs:
    """Every entry is a response of one token."""
    return LossInputs(
        logprobs=logprobs,
        old_logprobs=old,
        advantages=advantages,
        loss_mask=torch.ones_like(logprobs, dtype=torch.bool),
        sequence_ids=torch.arange(logprobs.numel()),
        ref_logprobs=ref,
        rollout_logprobs=MU.log_softmax(0) if logprobs.numel() == 6 else None,
    )


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) + the difference of masses, which is 0 for normalised measures."""
    return (p * (p / q).log()).sum() + (q - p).sum()


def rpg(divergence: str, style: str) -> PolicyLoss:
    return RegularizedPolicyGradient(divergence=divergence, style=style, clip="none", beta=BETA)


@pytest.mark.parametrize("style", ["reinforce", "differentiable"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_v14_rpg_descends_the_regularised_objective(divergence: str, style: str) -> None:
    theta = THETA.clone().requires_grad_()
    pi, old = theta.softmax(0), OLD.softmax(0)
    losses = rpg(divergence, style)(tokens(pi.log(), old.log(), REWARD))
    (found,) = torch.autograd.grad((old * losses).sum(), theta)
    theta = THETA.clone().requires_grad_()
    pi = theta.softmax(0)
    penalty = kl(old, pi) if divergence.endswith("fkl") else kl(pi, old)
    (expected,) = torch.autograd.grad((pi * REWARD).sum() - BETA * penalty, theta)
    close(found, -expected)


@pytest.mark.parametrize("style", ["reinforce", "differentiable"])
@pytest.mark.parametrize("divergence", ["ufkl", "urkl"])
def test_v14_unnormalised_measures(divergence: str, style: str) -> None:
    # The behaviour measure has mass Z = 1.7; x ~ measure / Z, the loss is multiplied by Z.
    theta = THETA.clone().requires_grad_()
    measure = 1.7 * OLD.softmax(0)
    pi = theta.softmax(0)
    losses = rpg(divergence, style)(tokens(pi.log(), measure.log(), REWARD))
    (found,) = torch.autograd.grad(1.7 * ((measure / 1.7) * losses).sum(), theta)
    theta = THETA.clone().requires_grad_()
    pi = theta.softmax(0)
    penalty = kl(measure, pi) if divergence == "ufkl" else kl(pi, measure)
    (expected,) = torch.autograd.grad((pi * REWARD).sum() - BETA * penalty, theta)
    close(found, -expected)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_v14_with_a_reference_of_its_own(divergence: str) -> None:
    theta = THETA.clone().requires_grad_()
    pi, old, ref = theta.softmax(0), OLD.softmax(0), REF.softmax(0)
    for style in ("reinforce", "differentiable"):
        loss = RegularizedPolicyGradient(
            divergence=divergence, style=style, clip="none", beta=BETA, reference="ref"
        )
        losses = loss(tokens(pi.log(), old.log(), REWARD, ref=ref.log()))
        (found,) = torch.autograd.grad((old * losses).sum(), theta, retain_graph=True)
        penalty = kl(ref, pi) if divergence.endswith("fkl") else kl(pi, ref)
        objective = (pi * REWARD).sum() - BETA * penalty
        (expected,) = torch.autograd.grad(objective, theta, retain_graph=True)
        close(found, -expected)


@pytest.mark.parametrize(("one", "other"), [("fkl", "ufkl"), ("rkl", "urkl")])
def test_v15_the_unnormalised_form_has_the_same_expectation(one: str, other: str) -> None:
    grads = []
    for divergence in (one, other):
        theta = THETA.clone().requires_grad_()
        losses = rpg(divergence, "reinforce")(
            tokens(theta.log_softmax(0), OLD.log_softmax(0), REWARD)
        )
        grads.append(torch.autograd.grad((OLD.softmax(0) * losses).sum(), theta)[0])
    close(grads[0], grads[1])


def kl_gradient(estimator: str, importance: str, behaviour: Tensor) -> tuple[Tensor, ...]:
    """(expected gradient of the penalty, of KL(ref || pi), of KL(pi || ref))."""
    theta = THETA.clone().requires_grad_()
    pi, ref = theta.softmax(0), REF.softmax(0)
    penalty = ReferenceKL(coefficient=1.0, estimator=estimator, importance=importance)
    inputs = tokens(pi.log(), behaviour.log(), torch.zeros_like(REWARD), ref=ref.log())
    scalars = ((behaviour * penalty(inputs)).sum(), kl(ref, pi), kl(pi, ref))
    return tuple(torch.autograd.grad(item, theta, retain_graph=True)[0] for item in scalars)


def test_v16_what_the_kl_estimators_descend() -> None:
    on_policy, off_policy = THETA.softmax(0), OLD.softmax(0)
    found, forward, backward = kl_gradient("k3", "none", on_policy)
    close(found, forward)  # GRPO's term on-policy: the FORWARD divergence
    found, forward, backward = kl_gradient("k3", "none", off_policy)
    assert (found - forward).abs().max() > 1e-2
    assert (found - backward).abs().max() > 1e-2
    found, _, backward = kl_gradient("k3", "differentiable", off_policy)
    close(found, backward)
    found, forward, _ = kl_gradient("k3", "detached", off_policy)
    close(found, forward)
    found, _, _ = kl_gradient("k1", "none", on_policy)
    close(found, torch.zeros(6, dtype=torch.float64))
    found, _, backward = kl_gradient("k2", "none", on_policy)
    close(found, backward)


def test_kl_estimators_are_unbiased_values() -> None:
    pi, ref = THETA.softmax(0), REF.softmax(0)
    for kind in ("k1", "k3"):
        close((pi * estimate(kind, pi.log(), ref.log())).sum(), kl(pi, ref))
    assert (estimate("k3", pi.log(), ref.log()) >= 0).all()


def test_v17_drift_is_the_forward_kl_from_the_old_policy() -> None:
    theta = THETA.clone().requires_grad_()
    pi, old = theta.softmax(0), OLD.softmax(0)
    drift = PolicyDrift(coefficient=1.0, cap=math.inf)
    inputs = tokens(pi.log(), old.log(), torch.zeros_like(REWARD))
    (found,) = torch.autograd.grad((old * drift(inputs)).sum(), theta, retain_graph=True)
    (expected,) = torch.autograd.grad(kl(old, pi), theta)
    close(found, expected)


def test_v18_an_uncapped_correction_is_unbiased_under_the_sampler() -> None:
    theta = THETA.clone().requires_grad_()
    pi, old, mu = theta.softmax(0), OLD.softmax(0), MU.softmax(0)
    inputs = tokens(pi.log(), old.log(), REWARD)
    losses = ClippedRatio(clip_low=1.0, clip_high=math.inf)(inputs)

    def expected_gradient(factor: Tensor | float) -> Tensor:
        total = (mu * factor * losses).sum()
        return torch.autograd.grad(total, theta, retain_graph=True)[0]

    (exact,) = torch.autograd.grad((pi * REWARD).sum(), theta, retain_graph=True)
    close(expected_gradient(TruncatedRatio(high=math.inf)(inputs)), -exact)
    assert (expected_gradient(1.0) + exact).abs().max() > 1e-2
    assert (expected_gradient(TruncatedRatio(high=1.2)(inputs)) + exact).abs().max() > 1e-3


# --- autoregressive task ---------------------------------------------------------------------

T = 3
SEQUENCES = list(itertools.product(range(3), repeat=T))
PREFIXES = [prefix for length in range(T) for prefix in itertools.product(range(3), repeat=length)]
SEQUENCE_REWARD = draw(8, len(SEQUENCES))
LOGITS = draw(6, len(PREFIXES), 3)
OLD_LOGITS = LOGITS + 0.3 * draw(7, len(PREFIXES), 3)


def token_logprobs(logits: Tensor) -> Tensor:
    """Log-probs of every token of every sequence [27, T] from tabular logits [13, 3]."""
    table = logits.log_softmax(-1)
    rows = [[PREFIXES.index(sequence[:t]) for t in range(T)] for sequence in SEQUENCES]
    return table[torch.tensor(rows), torch.tensor(SEQUENCES)]


def sequence_gradients(divergence: str, old_logits: Tensor, level: str) -> tuple[Tensor, Tensor]:
    """(expected loss gradient, gradient of -J) at LOGITS, with w of the sequence or of tokens."""
    logits = LOGITS.clone().requires_grad_()
    current, old = token_logprobs(logits), token_logprobs(old_logits)
    behaviour = old.sum(1).exp()  # [27]
    loss = rpg(divergence, "reinforce")
    if level == "sequence":
        losses = loss(tokens(current.sum(1), old.sum(1), SEQUENCE_REWARD))
        total = (behaviour * losses).sum()
    else:
        spread = SEQUENCE_REWARD.repeat_interleave(T)
        losses = loss(tokens(current.reshape(-1), old.reshape(-1), spread))
        total = (behaviour.repeat_interleave(T) * losses).sum()
    (found,) = torch.autograd.grad(total, logits, retain_graph=True)
    pi = current.sum(1).exp()
    penalty = kl(behaviour, pi) if divergence.endswith("fkl") else kl(pi, behaviour)
    objective = (pi * SEQUENCE_REWARD).sum() - BETA * penalty
    (gradient,) = torch.autograd.grad(objective, logits)
    return found, -gradient


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_v19_sequence_level_rpg_is_exact(divergence: str) -> None:
    close(*sequence_gradients(divergence, OLD_LOGITS, "sequence"))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_v20_the_token_level_surrogate_is_exact_on_policy_only(divergence: str) -> None:
    close(*sequence_gradients(divergence, LOGITS, "token"))
    found, exact = sequence_gradients(divergence, OLD_LOGITS, "token")
    assert (found - exact).norm() / exact.norm() > 0.05


def test_v20_the_relative_error_off_policy_is_what_it_is() -> None:
    # Seeds 6, 7, 8 above; a number that moves when the surrogate changes.
    found, exact = sequence_gradients("urkl", OLD_LOGITS, "token")
    assert ((found - exact).norm() / exact.norm()).item() == pytest.approx(0.0721503969, rel=1e-8)


def test_v21_the_log_ratio_objective_bounds_the_improvement_from_below() -> None:
    # CPGD Theorem 1 for R >= 0: J(pi) - J(old) >= E_old[R ln w], as w - 1 >= ln w.
    reward = REWARD.abs()
    for seed in range(20):
        pi, old = draw(100 + seed, 6).softmax(0), draw(200 + seed, 6).softmax(0)
        gain = ((pi - old) * reward).sum()
        bound = (old * reward * (pi / old).log()).sum()
        assert gain >= bound
