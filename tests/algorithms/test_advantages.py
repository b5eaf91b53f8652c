"""Credit assignment against literal values, closed forms and a slow recomputation."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from algorithms.advantages.outcome import BatchRelative, GroupRelative, LeaveOneOut
from algorithms.advantages.returns import GeneralizedAdvantage, ReinforcePlusPlus
from algorithms.advantages.statistics import whiten
from algorithms.conformance.batches import LENGTHS, credit_inputs
from algorithms.inputs import Credit, CreditInputs
from algorithms.parts import Advantage
from algorithms.segments import discounted_suffix_sum

REWARDS = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0], dtype=torch.float64)
GOLDEN_LENGTHS = (3, 5, 2, 8, 4, 4, 6, 1)


def batch(rewards: Tensor = REWARDS, *, group_size: int = 8) -> CreditInputs:
    return credit_inputs(GOLDEN_LENGTHS[: len(rewards)], rewards=rewards, group_size=group_size)


def per_sequence(credit: Credit, inputs: CreditInputs) -> Tensor:
    """First trainable token of each sequence [S]; every other token must agree."""
    first = []
    for index in range(len(inputs.shaped_rewards)):
        rows = credit.advantages[(inputs.sequence_ids == index) & inputs.loss_mask]
        assert (rows == rows[0]).all()
        first.append(rows[0])
    assert (credit.advantages[~inputs.loss_mask] == 0).all()
    return torch.stack(first)


@pytest.mark.parametrize(
    ("advantage", "one", "zero"),
    [
        (GroupRelative(), 1.20761240, -0.72456744),
        (GroupRelative(unbiased=False, eps=0.0), 1.29099445, -0.77459667),
        (GroupRelative(weighting="equal"), 0.625, -0.375),
        (LeaveOneOut(), 0.71428571, -0.42857143),
        (BatchRelative(), 0.625, -0.375),
        (BatchRelative(baseline="none"), 1.0, 0.0),
        # lengths [3,5,2,8,4,4,6,1]: token mean .0795454545, population variance .2479338843
        (ReinforcePlusPlus(baseline="group_mean", kl_coefficient=0.0), 1.09544512, -0.91287093),
        (
            ReinforcePlusPlus(baseline="group_mean", kl_coefficient=0.0, whiten="unbiased"),
            1.07871976,
            -0.89893313,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Advantage) else "",
)
def test_golden_advantages(advantage: Advantage, one: float, zero: float) -> None:
    inputs = batch()
    found = per_sequence(advantage(inputs), inputs)
    expected = torch.where(REWARDS > 0, one, zero).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_v12_rloo_and_the_invariance_of_grpo() -> None:
    rewards = torch.tensor([0.3, 1.4, -0.2, 0.9], dtype=torch.float64)
    inputs = batch(rewards, group_size=4)
    # R_k minus the mean of the other three
    others = torch.stack([rewards[[j for j in range(4) if j != k]].mean() for k in range(4)])
    torch.testing.assert_close(per_sequence(LeaveOneOut()(inputs), inputs), rewards - others)
    grpo = GroupRelative(eps=0.0)
    moved = batch(3.0 * rewards - 7.0, group_size=4)
    torch.testing.assert_close(grpo(moved).advantages, grpo(inputs).advantages)


@pytest.mark.parametrize(
    ("informative", "cap", "omega"), [(2, 3.0, 2.5), (1, 3.0, 3.0), (1, math.inf, 5.0)]
)
def test_clip_filter_weight(informative: int, cap: float, omega: float) -> None:
    # 5 prompts of two responses; `informative` of them differ: 5/2 = 2.5, min(3, 5/1) = 3.
    rewards = torch.zeros(10, dtype=torch.float64)
    rewards[: 2 * informative : 2] = 1.0
    inputs = credit_inputs([2] * 10, rewards=rewards, group_size=2)
    found = per_sequence(GroupRelative(weighting="clip_filter", weight_cap=cap)(inputs), inputs)
    expected = torch.zeros(10, dtype=torch.float64)
    expected[: 2 * informative : 2] = 0.5 * omega
    expected[1 : 2 * informative : 2] = -0.5 * omega
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("advantage", [GroupRelative(eps=0.0), LeaveOneOut()])
def test_equal_rewards_and_groups_of_one_earn_nothing(advantage: Advantage) -> None:
    same = batch(torch.full((8,), 0.1, dtype=torch.float64))
    assert (advantage(same).advantages == 0).all()
    alone = batch(REWARDS, group_size=1)
    assert (advantage(alone).advantages == 0).all()
    assert advantage.needs_groups


def test_whitening_is_over_trainable_tokens_only() -> None:
    values = torch.tensor([1.0, 2.0, 99.0, 3.0], dtype=torch.float64)
    mask = torch.tensor([True, True, False, True])
    # mean 2, population variance 2/3
    edge = 1 / math.sqrt(2 / 3)
    expected = torch.tensor([-edge, 0.0, 0.0, edge], dtype=torch.float64)
    torch.testing.assert_close(whiten(values, mask, "population"), expected, rtol=1e-7, atol=1e-7)
    one = torch.tensor([True, False, False, False])
    assert (whiten(values, one, "unbiased") == 0).all()
    assert whiten(values, mask, "none") is values


def single(rewards: float, values: list[float]) -> CreditInputs:
    num = len(values)
    return CreditInputs(
        shaped_rewards=torch.tensor([rewards], dtype=torch.float64),
        group_ids=torch.tensor([0]),
        sequence_ids=torch.zeros(num, dtype=torch.int64),
        loss_mask=torch.ones(num, dtype=torch.bool),
        values=torch.tensor(values, dtype=torch.float64),
    )


def test_golden_gae() -> None:
    # r = [0, 0, 1]: delta = .3, .1, .4; A3 = .4, A2 = .1 + .95*.4 = .48, A1 = .3 + .95*.48 = .756
    credit = GeneralizedAdvantage(lam=0.95, whiten="none")(single(1.0, [0.2, 0.5, 0.6]))
    torch.testing.assert_close(
        credit.advantages, torch.tensor([0.756, 0.48, 0.4], dtype=torch.float64)
    )
    assert credit.returns is not None
    torch.testing.assert_close(
        credit.returns, torch.tensor([0.956, 0.98, 1.0], dtype=torch.float64)
    )


def test_gae_equals_a_loop_and_skips_tokens_that_do_not_train() -> None:
    inputs = credit_inputs((6, 4, 9, 1, 0, 7))
    mask = inputs.loss_mask.clone()
    mask[[4, 20]] = False  # a tool output inside a response
    inputs = replace(inputs, loss_mask=mask)
    credit = GeneralizedAdvantage(gamma=0.9, lam=0.8, kl_coefficient=0.1, whiten="none")(inputs)
    assert inputs.values is not None
    assert inputs.old_logprobs is not None
    assert inputs.ref_logprobs is not None
    expected = torch.zeros_like(credit.advantages)
    for index in range(6):
        rows = torch.nonzero((inputs.sequence_ids == index) & mask).flatten().tolist()
        running, following = 0.0, 0.0
        for position, row in reversed(list(enumerate(rows))):
            reward = -0.1 * (inputs.old_logprobs[row] - inputs.ref_logprobs[row]).item()
            reward += inputs.shaped_rewards[index].item() if position == len(rows) - 1 else 0.0
            value = inputs.values[row].item()
            running = reward + 0.9 * following - value + 0.9 * 0.8 * running
            following, expected[row] = value, running
    torch.testing.assert_close(credit.advantages, expected, rtol=1e-12, atol=1e-12)


def test_reinforce_pp_return_to_go_carries_the_kl() -> None:
    inputs = credit_inputs((3,), rewards=torch.tensor([1.0]).double(), group_size=1)
    inputs = replace(
        inputs,
        old_logprobs=torch.tensor([0, 0, -1.0, -1.0, -1.0]).double(),
        ref_logprobs=torch.tensor([0, 0, -1.5, -1.0, -0.8]).double(),
    )
    # k1 = .5, 0, -.2; r = -.05, 0, 1.02; returns = .97, 1.02, 1.02
    credit = ReinforcePlusPlus(kl_coefficient=0.1, whiten="none")(inputs)
    torch.testing.assert_close(
        credit.advantages, torch.tensor([0, 0, 0.97, 1.02, 1.02], dtype=torch.float64)
    )
    assert credit.metrics["credit/kl"] == pytest.approx(0.1)


def test_columns_follow_the_kl_coefficient() -> None:
    assert ReinforcePlusPlus(kl_coefficient=0.0).columns == frozenset()
    assert ReinforcePlusPlus().columns == {"old_logprobs", "ref_logprobs"}
    assert GeneralizedAdvantage().columns == {"values"}
    assert not ReinforcePlusPlus().needs_groups


@pytest.mark.parametrize("factor", [1.0, 0.95, 0.5, 0.0])
def test_scan_is_exact_where_powers_underflow(factor: float) -> None:
    # 0.5^3000 is below the smallest double; dividing by such powers would give 0/0.
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3000, 1, 17, 2048])
    ids = torch.repeat_interleave(torch.arange(4), lengths)
    values = torch.randn(ids.numel(), generator=generator, dtype=torch.float64)
    expected, running = torch.empty_like(values), 0.0
    for row in range(ids.numel() - 1, -1, -1):
        last = row + 1 == ids.numel() or ids[row + 1] != ids[row]
        running = values[row].item() + (0.0 if last else factor * running)
        expected[row] = running
    found = discounted_suffix_sum(values, ids, factor)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    single_precision = discounted_suffix_sum(values.float(), ids, factor)
    torch.testing.assert_close(single_precision.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("advantage", [GeneralizedAdvantage(), ReinforcePlusPlus()])
def test_credit_runs_as_many_operations_for_long_sequences_as_for_short(
    advantage: Advantage,
) -> None:
    def operations(length: int) -> int:
        ids = torch.repeat_interleave(torch.arange(64), length)
        inputs = CreditInputs(
            shaped_rewards=torch.randn(64),
            group_ids=torch.arange(64) // 8,
            sequence_ids=ids,
            loss_mask=torch.ones(ids.numel(), dtype=torch.bool),
            **{
                name: torch.randn(ids.numel())
                for name in ("old_logprobs", "ref_logprobs", "values")
            },
        )
        with Operations() as counter:
            advantage(inputs)
        return counter.total

    assert 0 < operations(4096) <= operations(16) + 400  # doubling steps: logarithmic, no loop


class Operations(TorchDispatchMode):
    """Counts the operations that PyTorch runs: exact where a clock depends on the neighbours."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.total += 1
        return func(*args, **(kwargs or {}))


def test_credit_does_not_depend_on_the_order_of_sequences() -> None:
    inputs = credit_inputs(LENGTHS)
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    rows = torch.cat([torch.nonzero(inputs.sequence_ids == s).flatten() for s in order])
    lengths = torch.tensor([LENGTHS[s] + 2 for s in order])
    moved = CreditInputs(
        shaped_rewards=inputs.shaped_rewards[order],
        group_ids=inputs.group_ids[order],
        sequence_ids=torch.repeat_interleave(torch.arange(8), lengths),
        **{
            name: getattr(inputs, name)[rows]
            for name in ("loss_mask", "old_logprobs", "ref_logprobs", "rollout_logprobs", "values")
        },
    )
    for advantage in (
        GroupRelative(),
        GroupRelative(weighting="clip_filter", whiten="unbiased"),
        LeaveOneOut(),
        ReinforcePlusPlus(),
        GeneralizedAdvantage(),
    ):
        torch.testing.assert_close(advantage(moved).advantages, advantage(inputs).advantages[rows])
