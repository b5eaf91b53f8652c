"""Parts that follow training: reference rules and controllers, by hand and inside an algorithm."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from algorithms.advantages.outcome import GroupRelative
from algorithms.advantages.returns import ReinforcePlusPlus
from algorithms.aggregations import TokenMean
from algorithms.algorithm import Algorithm
from algorithms.coefficients import read, replaced
from algorithms.conformance.batches import credit_inputs, random_inputs
from algorithms.controllers import AdaptiveCoefficient, EntropyTarget
from algorithms.policy_losses.clipped import ClippedRatio
from algorithms.policy_losses.rpg import RegularizedPolicyGradient
from algorithms.references import Frozen, MovingAverage, ReferenceState, Refreshed
from algorithms.regularizers import EntropyBonus, ReferenceKL

KL = AdaptiveCoefficient(
    coefficient="regularizers.kl.coefficient", metric="reference/kl", target=6.0
)
ENTROPY = EntropyTarget(
    coefficient="regularizers.entropy.coefficient",
    metric="policy/entropy",
    target=0.5,
    step=0.01,
    maximum=0.05,
)


def composed(**parts: Any) -> Algorithm:
    defaults: dict[str, Any] = {
        "name": "test",
        "advantage": GroupRelative(),
        "policy_loss": ClippedRatio(),
        "aggregation": TokenMean(),
        "regularizers": {"kl": ReferenceKL(), "entropy": EntropyBonus()},
    }
    return Algorithm(**(defaults | parts))


def test_ziegler_by_hand() -> None:
    # kl twice the target: error clipped to .2, over 1000 of 10000 samples: 1 + .2 * .1
    assert KL.update(0.1, 12.0, 1000) == pytest.approx(0.102)
    assert KL.update(0.1, 6.0, 1000) == pytest.approx(0.1)
    assert KL.update(0.1, 0.0, 1000) == pytest.approx(0.098)
    assert KL.update(0.1, 6.6, 1000) == pytest.approx(0.101)  # 10% above: not clipped


def test_the_factor_of_a_large_step_stays_positive_and_the_coefficient_in_its_bounds() -> None:
    # 100,000 samples of a horizon of 10,000: 1 - .2 * 10 would be -1
    assert KL.update(0.1, 0.0, 100_000) == pytest.approx(0.08)
    bounded = replace(KL, minimum=0.09, maximum=0.11)
    assert bounded.update(0.1, 0.0, 100_000) == 0.09
    assert bounded.update(0.1, 100.0, 100_000) == 0.11
    with pytest.raises(ValueError, match=r"limit=1.5 lets the factor reach 0; set it below 1"):
        replace(KL, limit=1.5)
    with pytest.raises(ValueError, match=r"start from minimum=0.09 to maximum=0.11; set algo"):
        bounded.check_start(0.5)


def test_entropy_target_by_hand() -> None:
    assert ENTROPY.update(0.02, 0.4, 8) == pytest.approx(0.03)
    assert ENTROPY.update(0.02, 0.6, 8) == pytest.approx(0.01)
    assert ENTROPY.update(0.005, 0.6, 8) == 0.0
    assert ENTROPY.update(0.045, 0.4, 8) == 0.05


def test_ziegler_settles_where_the_metric_is_at_its_target() -> None:
    """A KL that falls as its coefficient rises, kl = 1 / c, is held at the target 6."""
    coefficient = 10.0
    for _ in range(2000):
        coefficient = KL.update(coefficient, 1.0 / coefficient, 256)
    assert 1.0 / coefficient == pytest.approx(6.0, rel=1e-3)


def test_refresh_every_steps_or_beyond_the_threshold() -> None:
    rule = Refreshed(every_steps=3, kl_threshold=0.5, decay=0.5)
    state, share = rule.update(ReferenceState(), 0.1)
    assert state == ReferenceState(age_steps=1, average_kl=pytest.approx(0.05))
    assert share == 0.0
    state, share = rule.update(state, 0.2)
    assert (state.average_kl, share) == (pytest.approx(0.125), 0.0)
    assert rule.update(state, 0.0) == (ReferenceState(moved=True), 1.0)  # third step
    assert rule.update(state, 1.0) == (ReferenceState(moved=True), 1.0)  # .5625 > .5
    assert rule.update(ReferenceState(), 0.9)[1] == 0.0  # .45


def test_a_moved_reference_stays_moved() -> None:
    rule = Refreshed(every_steps=2)
    state, _ = rule.update(ReferenceState(age_steps=1), 0.0)
    assert rule.update(state, 0.0)[0] == ReferenceState(age_steps=1, moved=True)


def test_moving_average_and_frozen() -> None:
    assert MovingAverage(decay=0.75).update(ReferenceState(), 0.3) == (
        ReferenceState(age_steps=1, moved=True),
        0.25,
    )
    assert Frozen().update(ReferenceState(age_steps=4), 0.3) == (ReferenceState(age_steps=5), 0.0)


def test_every_step_makes_the_old_policy_the_reference() -> None:
    """No role has to run: the loss equals that of a reference role with the same log-probs."""
    every = composed(reference=Refreshed(every_steps=1))
    assert every.required_columns == {"old_logprobs", "entropy"}
    assert composed(reference=Refreshed(every_steps=2)).required_columns >= {"ref_logprobs"}
    inputs = random_inputs()
    same = replace(inputs, ref_logprobs=inputs.old_logprobs)
    found = every.token_loss(replace(inputs, ref_logprobs=None)).terms["policy"]
    assert torch.equal(found, composed().token_loss(same).terms["policy"])


def test_the_old_policy_is_the_reference_of_rpg_and_of_credit() -> None:
    inputs = replace(random_inputs(), ref_logprobs=None)
    losses = [
        composed(
            policy_loss=RegularizedPolicyGradient(beta=0.3, reference=reference),
            reference=rule,
            regularizers={},
        ).token_loss(inputs)
        for reference, rule in (("old", Frozen()), ("ref", Refreshed(every_steps=1)))
    ]
    assert torch.equal(losses[0].terms["policy"], losses[1].terms["policy"])
    penalised = composed(
        advantage=ReinforcePlusPlus(kl_coefficient=0.1, whiten="none"),
        reference=Refreshed(every_steps=1),
        regularizers={},
    )
    assert penalised.credit_columns == {"old_logprobs"}
    metrics = penalised.credit(replace(credit_inputs(), ref_logprobs=None)).metrics
    assert metrics["credit/kl"] == 0.0


def test_the_reference_kl_is_reported_by_the_old_policys_samples() -> None:
    # pi_old = .5, pi_ref = .25 on every token: r = .5, k3 = .5 - 1 + ln 2
    inputs = random_inputs()
    inputs = replace(
        inputs,
        old_logprobs=torch.full_like(inputs.old_logprobs, 0.5).log(),
        ref_logprobs=torch.full_like(inputs.old_logprobs, 0.25).log(),
    )
    kl = composed().token_loss(inputs).metrics["reference/kl"]
    torch.testing.assert_close(
        kl[inputs.loss_mask], torch.full_like(kl[inputs.loss_mask], 0.19314718055994530)
    )


def test_coefficients_are_read_and_replaced_by_path() -> None:
    algorithm = composed(controllers={"kl": KL, "entropy": ENTROPY})
    assert algorithm.coefficients == {
        "regularizers.kl.coefficient": 0.04,
        "regularizers.entropy.coefficient": 0.001,
    }
    other = algorithm.with_coefficients({"regularizers.kl.coefficient": 0.5})
    assert read(other, "regularizers.kl.coefficient") == 0.5
    assert read(other, "regularizers.entropy.coefficient") == 0.001
    assert read(algorithm, "regularizers.kl.coefficient") == 0.04  # the original is what it was
    assert algorithm.with_coefficients({}) is algorithm
    # What the loss does with it: the KL's share of the loss is 0.5 / 0.04 times as large.
    inputs = random_inputs()
    base = composed(regularizers={}).token_loss(inputs).terms["policy"]
    small = composed(regularizers={"kl": ReferenceKL()}).token_loss(inputs).terms["policy"] - base
    large = (
        replaced(composed(regularizers={"kl": ReferenceKL()}), {"regularizers.kl.coefficient": 0.5})
        .token_loss(inputs)
        .terms["policy"]
        - base
    )
    torch.testing.assert_close(large, 12.5 * small)


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: Refreshed(), "never refresh the reference; give one"),
    (lambda: Refreshed(every_steps=0), "every_steps=0 is not positive"),
    (lambda: Refreshed(kl_threshold=-1.0), "kl_threshold=-1.0 is not positive"),
    (lambda: MovingAverage(decay=1.0), "decay=1.0 is no average"),
    (lambda: MovingAverage(decay=1.5), "decay=1.5 is outside"),
    (lambda: replace(KL, target=0.0), "target=0.0 is not positive"),
    (lambda: replace(ENTROPY, step=-1.0), "step=-1.0 is not positive"),
    (
        lambda: composed(regularizers={}, reference=MovingAverage()),
        "has nothing to move: no part reads ref_logprobs; choose algorithm/reference=frozen",
    ),
    (lambda: composed(reference="frozen"), "reference='frozen' is no ReferenceRule"),
    (lambda: composed(controllers={"a": KL, "b": KL}), "controllers.b: .* has a controller"),
    (
        lambda: composed(controllers={"kl": replace(KL, coefficient="regularizers.kl.beta")}),
        "regularizers.kl.beta is nowhere in the algorithm: no 'beta' among coefficient, estimator",
    ),
    (
        lambda: composed(controllers={"kl": replace(KL, coefficient="regularizers.kl")}),
        "is no number; name a number below it",
    ),
    (
        lambda: composed(regularizers={"kl": ReferenceKL(coefficient=0.0)}, controllers={"kl": KL}),
        "coefficient=0.0 is steered by a factor, which needs a start from minimum=1e-06",
    ),
    (
        lambda: composed(
            regularizers={"entropy": EntropyBonus(coefficient=0.1)}, controllers={"e": ENTROPY}
        ),
        "starts above maximum=0.05",
    ),
]


@pytest.mark.parametrize(("build", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_values_are_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
