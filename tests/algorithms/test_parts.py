"""Gates, filters, reward shaping, the critic's loss, and what bad input says."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.advantages.outcome import BatchRelative, GroupRelative
from algorithms.advantages.returns import GeneralizedAdvantage, ReinforcePlusPlus
from algorithms.aggregations import FixedLength, TokenMean
from algorithms.algorithm import Algorithm
from algorithms.auxiliary import CorrectLikelihood
from algorithms.conformance.batches import credit_inputs, metadata_of, random_inputs
from algorithms.corrections import MaskedRatio, Product, TruncatedRatio
from algorithms.filters import DynamicSampling, OverlongFilter
from algorithms.gates import EntropyRatioClip, ProbabilityClip
from algorithms.inputs import LossInputs, RewardInputs
from algorithms.kl import estimate
from algorithms.parts import Filter, PolicyLoss
from algorithms.policy_losses.clipped import ClippedRatio, Reinforce
from algorithms.policy_losses.cpgd import ClippedLogRatio
from algorithms.policy_losses.gppo import GradientPreservingClip
from algorithms.policy_losses.rpg import RegularizedPolicyGradient
from algorithms.policy_losses.sequence import GeometricMean
from algorithms.policy_losses.truncated import SoftAdaptive, TruncatedImportance
from algorithms.regularizers import EntropyBonus, PolicyDrift, ReferenceKL, SquaredLogRatio
from algorithms.rewards import ClipReward, OverlongPenalty, TruncationReward
from algorithms.value_losses import ClippedValue


def composed(**parts: Any) -> Algorithm:
    defaults: dict[str, Any] = {
        "name": "test",
        "advantage": GroupRelative(),
        "policy_loss": ClippedRatio(),
        "aggregation": TokenMean(),
    }
    return Algorithm(**(defaults | parts))


def test_golden_entropy_ratios() -> None:
    # rho: 1, .982588384, .928553195, 1.033719535 for the first logit at 2, 2.05, 2.2, 1.9.
    logits = torch.tensor(
        [[first, 1.0, 0.0, -1.0] for first in (2.0, 2.05, 2.2, 1.9)], dtype=torch.float64
    )
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    expected = torch.tensor([0.947536964, 0.931038814, 0.879838475, 0.979487470]).double()
    torch.testing.assert_close(entropy, expected, rtol=0, atol=5e-8)
    base = random_inputs([4])
    inputs = replace(
        base,
        entropy=torch.cat([torch.ones(2).double(), entropy]),
        old_entropy=torch.cat([torch.ones(2).double(), entropy[:1].expand(4)]),
    )
    gate = EntropyRatioClip()
    assert gate(inputs)[2:].tolist() == [True, True, False, True]
    assert gate.metrics(inputs)["erc/mask_frac"][2:].tolist() == [0.0, 0.0, 1.0, 0.0]
    torch.testing.assert_close(
        gate.metrics(inputs)["erc/entropy_ratio"][2:],
        torch.tensor([1.0, 0.982588384, 0.928553195, 1.033719535]).double(),
        rtol=0,
        atol=5e-8,
    )


def test_erc_bounds_are_strict() -> None:
    base = random_inputs([2])
    ones = torch.ones_like(base.advantages)
    inputs = replace(base, entropy=ones * 1.5, old_entropy=ones)
    assert not EntropyRatioClip(low=0.5, high=0.5, eps=1e-300)(inputs).any()


def rewarded(
    rewards: list[float], lengths: list[int], truncated: list[bool] | None = None
) -> RewardInputs:
    return RewardInputs(
        rewards=torch.tensor(rewards, dtype=torch.float64),
        response_lengths=torch.tensor(lengths),
        truncated=torch.tensor(truncated or [False] * len(rewards)),
    )


def test_golden_overlong_penalty() -> None:
    shaping = OverlongPenalty(max_length=8192, buffer=2048, factor=1.0)
    shaped = shaping(rewarded([0.0] * 6, [100, 6144, 6145, 7168, 8192, 9000]))
    expected = torch.tensor([0.0, 0.0, -0.00048828125, -0.5, -1.0, -1.0]).double()
    torch.testing.assert_close(shaped, expected, rtol=0, atol=0)


@pytest.mark.parametrize("budget", [5, 4096])
def test_a_budget_without_room_for_the_buffer_is_not_penalised(budget: int) -> None:
    shaping = OverlongPenalty(max_length=budget, buffer=4096)
    assert shaping(rewarded([1.0, 0.0], [1, budget])).tolist() == [1.0, 0.0]
    assert not shaping.ramps


def test_reward_shaping_runs_in_order() -> None:
    shaping = {"cut": TruncationReward(value=-2.0), "clip": ClipReward(low=-1.0, high=1.0)}
    algorithm = composed(reward_shaping=shaping)
    shaped = algorithm.shape_rewards(rewarded([3.0, 0.5, 0.7], [1, 1, 1], [False, False, True]))
    assert shaped.tolist() == [1.0, 0.5, -1.0]


def test_dynamic_sampling_keeps_groups_that_differ() -> None:
    # Rewards of 0.1 have a float mean that differs from 0.1, and a deviation that is not 0.
    rewards = torch.tensor([0.1, 0.1, 0.1, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    kept = composed(filters={"dynamic": DynamicSampling()}).keep_groups(rewards, groups)
    assert kept.tolist() == [False, True, False]
    assert composed().keep_groups(rewards, groups).tolist() == [True, True, True]


def test_dynamic_sampling_compares_one_part_of_a_composite_reward() -> None:
    """Lengths differ in both groups; the answers of the first are all right."""
    rewards = torch.tensor([1.1, 1.2, 1.1, 0.2])
    parts = [
        {"accuracy": 1.0, "length": 0.1},
        {"accuracy": 1.0, "length": 0.2},
        {"accuracy": 1.0, "length": 0.1},
        {"accuracy": 0.0, "length": 0.2},
    ]
    groups = torch.tensor([0, 0, 1, 1])
    whole = composed(filters={"dynamic": DynamicSampling()})
    accuracy = composed(filters={"dynamic": DynamicSampling(part="accuracy")})
    assert whole.keep_groups(rewards, groups, parts).tolist() == [True, True]
    assert accuracy.keep_groups(rewards, groups, parts).tolist() == [False, True]
    with pytest.raises(
        ValueError,
        match="filters.dynamic reads 'accuracy', which is no part of .*; there is length",
    ):
        accuracy.keep_groups(rewards, groups, [{"length": 0.1}] * 4)
    assert whole.settles_early and not accuracy.settles_early
    assert not accuracy.settled([0.0, 1.0], 1) and accuracy.settled([0.0, 1.0], 0)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"policy_loss": "values"}, r"columns \['values'\], which no part of the loss is given"),
        ({"policy_loss": "returns"}, r"columns \['returns'\], which no part of the loss"),
        ({"advantage": "entropy"}, r"columns \['entropy'\], which no advantage is given"),
        ({"value_loss": "ref_logprobs"}, r"\['ref_logprobs'\], which no value loss is given"),
    ],
)
def test_a_column_of_another_kind_of_part_is_refused(part: dict[str, str], message: str) -> None:
    kinds = {"policy_loss": Reinforce, "advantage": GroupRelative, "value_loss": ClippedValue}
    ((name, column),) = part.items()
    own = type("Own", (kinds[name],), {"columns": frozenset({column})})
    with pytest.raises(ValueError, match=message):
        composed(**{name: own()})


def test_a_gate_of_probabilities_stops_one_side_by_the_sign_of_the_advantage() -> None:
    # From 0.5 to 0.8 and to 0.2, by advantages of both signs: 0.3 is beyond 0.2.
    inputs = LossInputs(
        logprobs=torch.tensor([0.8, 0.8, 0.2, 0.2, 0.6, 0.4]).log(),
        old_logprobs=torch.full((6,), 0.5).log(),
        advantages=torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]),
        loss_mask=torch.ones(6, dtype=torch.bool),
        sequence_ids=torch.zeros(6, dtype=torch.int64),
    )
    gate = ProbabilityClip()
    assert gate(inputs).tolist() == [False, True, True, False, True, True]
    metrics = gate.metrics(inputs)
    assert metrics["dppo/mask_high_frac"].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert metrics["dppo/mask_low_frac"].tolist() == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def test_the_squared_log_ratio_by_hand() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    inputs = replace(
        random_inputs((0,)), logprobs=logprobs, old_logprobs=torch.tensor([-1.5, -2.0])
    )
    penalty = SquaredLogRatio(coefficient=0.1)(inputs)
    assert penalty.tolist() == pytest.approx([0.025, 0.0])  # 0.1 * 0.5^2
    (gradient,) = torch.autograd.grad(penalty.sum(), logprobs)
    assert gradient.tolist() == pytest.approx([0.1, 0.0])  # 2 * 0.1 * 0.5


@pytest.mark.parametrize(
    ("rewards", "num_left", "settled"),
    [
        ([0.0, 1.0], 6, True),  # they differ, whatever comes
        ([0.3, 0.3, 0.30001], 1, True),
        ([1.0, 1.0, 1.0], 1, False),  # the last may differ
        ([1.0, 1.0, 1.0], 0, True),
        ([0.0], 7, False),
    ],
)
def test_when_dynamic_sampling_has_decided(rewards, num_left, settled):
    algorithm = composed(filters={"dynamic": DynamicSampling(), "overlong": OverlongFilter()})
    assert algorithm.settled(rewards, num_left) is settled
    assert algorithm.settles_early
    assert not composed(filters={"overlong": OverlongFilter()}).settles_early
    if settled:  # the promise, against the verdict itself, for none to all of what may come
        for count in range(num_left + 1):
            for last in (0.0, 1.0):
                final = torch.tensor([*rewards, *[last] * count])
                verdict = algorithm.keep_groups(final, torch.zeros(len(final), dtype=torch.int64))
                assert bool(verdict[0]) is (max(rewards) > min(rewards))


def test_a_filter_that_says_nothing_of_it_decides_at_the_end():
    class AtMostOneRight(Filter):
        def keep_groups(self, rewards, group_ids):
            return torch.zeros(int(group_ids.max()) + 1).index_add(0, group_ids, rewards) <= 1

    algorithm = composed(filters={"own": AtMostOneRight(), "dynamic": DynamicSampling()})
    assert not algorithm.settled([0.0, 1.0], 1)
    assert algorithm.settled([0.0, 1.0], 0)


def test_overlong_filter_stops_truncated_responses() -> None:
    inputs = rewarded([1.0, 1.0], [5, 9], [False, True])
    assert composed(filters={"overlong": OverlongFilter()}).trains(inputs).tolist() == [True, False]
    assert composed().trains(inputs).tolist() == [True, True]


def test_clipped_value_loss_and_its_gradient() -> None:
    # V=2, V_old=0, ret=1, clip .5: max((2-1)^2, (.5-1)^2) = 1 -> .5, slope V-ret = 1
    # V=.9, V_old=0, ret=1:        max(.01, (.5-1)^2) = .25 -> .125, clipped: slope 0
    values = torch.tensor([2.0, 0.9], dtype=torch.float64, requires_grad=True)
    inputs = replace(
        random_inputs([0]),  # two masked tokens
        values=values,
        old_values=torch.zeros(2).double(),
        returns=torch.ones(2).double(),
        loss_mask=torch.tensor([True, True]),
    )
    algorithm = composed(value_loss=ClippedValue(clip=0.5), advantage=GeneralizedAdvantage())
    term = algorithm.critic_loss(inputs).terms["value"]
    torch.testing.assert_close(term.detach(), torch.tensor([0.5, 0.125]).double())
    term.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 0.0]
    assert algorithm.required_columns == {"old_logprobs", "values"}
    assert algorithm.value_columns == {"values", "old_values", "returns"}
    assert set(algorithm.sequence_weights(metadata_of(inputs, 1))) == {"policy", "value"}
    with pytest.raises(ValueError, match="has no value_loss"):
        composed().critic_loss(inputs)


def test_entropy_bonus_asks_for_the_gradient() -> None:
    algorithm = composed(regularizers={"entropy": EntropyBonus(coefficient=0.1)})
    inputs = random_inputs()
    algorithm.token_loss(inputs).terms["policy"].sum().backward()
    assert inputs.entropy is not None
    expected = torch.where(inputs.loss_mask, -0.1, 0.0).double()
    torch.testing.assert_close(inputs.entropy.grad, expected)
    assert algorithm.entropy_gradient
    assert not composed(gates={"erc": EntropyRatioClip()}).entropy_gradient


def test_kl_estimators_by_hand() -> None:
    # p = .5, q = .25: r = .5, ln r = -.693147: k1 .693147, k2 .240227, k3 .5 - 1 + .693147
    p, q = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    for kind, expected in {"k1": 0.693147, "k2": 0.240227, "k3": 0.193147, "abs": 0.693147}.items():
        assert estimate(kind, p, q).item() == pytest.approx(expected, abs=1e-6)


def far_below(**fields: Any) -> tuple[Tensor, Tensor]:
    """Penalty and gradient of 2 tokens: at the reference, and 15 nats below it."""
    logprobs = torch.tensor([-1.0, -16.0], requires_grad=True)
    inputs = LossInputs(
        logprobs=logprobs,
        old_logprobs=logprobs.detach(),
        advantages=torch.zeros(2),
        loss_mask=torch.tensor([True, True]),
        sequence_ids=torch.tensor([0, 0]),
        ref_logprobs=torch.tensor([-1.0, -1.0]),
    )
    penalty = ReferenceKL(coefficient=1.0, **fields)(inputs)
    (gradient,) = torch.autograd.grad(penalty.sum(), logprobs)
    return penalty.detach(), gradient


def test_one_token_far_below_the_reference_does_not_outweigh_the_batch() -> None:
    penalty, gradient = far_below()
    assert penalty.tolist() == [0.0, 10.0]
    assert gradient.tolist() == [0.0, 0.0]  # beyond the bound k3 does not change
    penalty, gradient = far_below(limit=math.inf)
    assert penalty[1].item() == pytest.approx(math.exp(15) - 16, rel=1e-5)  # 3.3 million
    assert far_below(estimator="k2")[0].tolist() == [0.0, 112.5]  # 15^2 / 2, unbounded


def test_metrics_are_detached_tokens() -> None:
    algorithm = composed(
        gates={"erc": EntropyRatioClip()},
        regularizers={"drift": PolicyDrift(), "kl": ReferenceKL()},
        correction=TruncatedRatio(),
    )
    inputs = random_inputs(spread=1.0)
    metrics = algorithm.token_loss(inputs).metrics
    assert {
        "policy/ratio",
        "policy/ratio_max",
        "policy/ratio_min",
        "policy/kl_old_k3",
        "policy/clip_frac",
        "policy/entropy",
        "policy/kl_ref_k3",
        "policy/kl_ref_limit_frac",
        "drift/kl_k3",
        "erc/mask_frac",
        "mismatch/factor",
    } <= set(metrics)
    for name, metric in metrics.items():
        assert metric.shape == inputs.loss_mask.shape, name
        assert not metric.requires_grad, name


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: ClippedRatio(clip_low=-0.1), "clip_low=-0.1 is below"),
    (lambda: ClippedRatio(clip_high=math.nan), "clip_high=nan"),
    (lambda: ClippedRatio(dual_clip=0.5), "dual_clip=0.5 is not above 1"),
    (lambda: ClippedRatio(clip_high=".inf"), "clip_high='.inf' is no number; write it as"),  # type: ignore[arg-type]
    (lambda: ClippedRatio(dual_clip="3"), "dual_clip='3' is no number"),  # type: ignore[arg-type]
    (lambda: Reinforce(importance_cap=0.0), "importance_cap=0.0 is not positive"),
    (lambda: ClippedLogRatio(schedule=1.5), "schedule=1.5 is outside"),
    (lambda: PolicyDrift(coefficient=-1.0), "coefficient=-1.0"),
    (lambda: PolicyDrift(cap=0.0), "cap=0.0"),
    (lambda: ReferenceKL(estimator="k4"), "estimator='k4' is unknown"),
    (lambda: ReferenceKL(limit=0.0), "limit=0.0 is not positive"),
    (lambda: ReferenceKL(importance="some"), "importance='some' is unknown"),
    (lambda: EntropyBonus(coefficient=math.inf), "coefficient=inf is not finite"),
    (lambda: EntropyRatioClip(low=-0.1), "low=-0.1"),
    (lambda: GradientPreservingClip(beta_low=-1.0), "beta_low=-1.0"),
    (lambda: TruncatedImportance(ratio_min=2.0), "ratio_min=2.0 is not below ratio_max=1.28"),
    (lambda: SoftAdaptive(tau_positive=0.0), "tau_positive=0.0"),
    (lambda: GeometricMean(log_clip=-0.4), "log_clip=-0.4"),
    (lambda: RegularizedPolicyGradient(divergence="jsd"), "divergence='jsd' is unknown"),
    (lambda: RegularizedPolicyGradient(clip="dual"), "clip='dual' does not exist for style"),
    (lambda: RegularizedPolicyGradient(beta=-1.0), "beta=-1.0"),
    (lambda: MaskedRatio(low=5.0, high=0.5), "low=5.0 is not below high=0.5"),
    (lambda: Product(parts={}), "parts={} is empty"),
    (lambda: FixedLength(max_length=0), "max_length=0"),
    (lambda: GroupRelative(weighting="sdt"), "weighting='sdt' is unknown; choose one of"),
    (lambda: BatchRelative(baseline="median"), "baseline='median'"),
    (lambda: ReinforcePlusPlus(whiten="yes"), "whiten='yes'"),
    (lambda: GeneralizedAdvantage(lam=1.5), "lam=1.5"),
    (lambda: OverlongPenalty(max_length=0, buffer=20), "max_length=0 is not positive"),
    (lambda: OverlongPenalty(max_length=10, buffer=0), "buffer=0 is not positive"),
    (lambda: CorrectLikelihood(coefficient=-0.1), "coefficient=-0.1"),
    (lambda: ClippedValue(clip=0.0), "clip=0.0"),
    (lambda: composed(name=""), "name=''"),
    (lambda: composed(policy_loss=GroupRelative()), "is no PolicyLoss; inherit"),
    (lambda: composed(gates=[EntropyRatioClip()]), "is no mapping"),
    (lambda: composed(gates={"drift": PolicyDrift()}), "gates.drift=.* is no Gate"),
    (lambda: composed(auxiliaries={"policy": CorrectLikelihood()}), "key 'policy' is taken"),
]


@pytest.mark.parametrize(("build", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_fields_name_the_value(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{}", r"\{\}")):
        build()


class Scalar(PolicyLoss):
    """A loss that reduces, which is the aggregation's task."""

    def __call__(self, inputs: LossInputs) -> torch.Tensor:
        return inputs.logprobs.mean()


class Inventive(Scalar):
    columns = frozenset({"temperature"})


def test_bad_batches_and_parts_are_named() -> None:
    inputs = random_inputs()
    with pytest.raises(ValueError, match=r"Scalar returned shape \(\) for \(45,\) tokens"):
        composed(policy_loss=Scalar()).token_loss(inputs)
    with pytest.raises(ValueError, match=r"Inventive declares columns \['temperature'\], which no"):
        composed(policy_loss=Inventive())
    gated = composed(gates={"erc": EntropyRatioClip()})
    with pytest.raises(ValueError, match=r"reads columns \['old_entropy'\] and the batch lacks"):
        gated.token_loss(replace(inputs, old_entropy=None))
    broken = credit_inputs(rewards=torch.full((8,), math.nan, dtype=torch.float64))
    with pytest.raises(ValueError, match="rewards: 8 of 8 are not finite; drop"):
        composed().credit(broken)
    values = credit_inputs().values
    assert values is not None
    wild = replace(credit_inputs(), values=values * math.inf)
    with pytest.raises(ValueError, match="advantages of GeneralizedAdvantage: 29 of 45 are not"):
        composed(advantage=GeneralizedAdvantage(), value_loss=ClippedValue()).credit(wild)
