"""Checks of the conformance kit: one function per property, raising on a violation.

Properties that must hold for any algorithm, shipped or not. Runs in the process of
`ballast check-algorithm`, or of a test. Not a proof that a loss is the paper's. Each function
returns what it measured, or raises `CheckFailed`.
"""

import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from algorithms.advantages.outcome import GroupRelative
from algorithms.aggregations import SequenceMean
from algorithms.algorithm import Algorithm
from algorithms.composition import vocabulary
from algorithms.conformance.batches import (
    LENGTHS,
    credit_inputs,
    credit_with_observations,
    gradient,
    metadata_of,
    random_inputs,
    select_sequences,
    total_loss,
)
from algorithms.conformance.learning import train
from algorithms.inputs import CreditInputs, LossInputs, RewardInputs
from algorithms.parts import Advantage, TokenPart

TOLERANCE = 1e-10
REWARD_PART = "reward part "  # before the name of one, among columns


class CheckFailed(Exception):  # noqa: N818 - a verdict, not an error of the kit
    """Violation of a property by the algorithm; the message describes it."""


def require(condition: bool, message: str) -> None:
    """Raise `CheckFailed` with the message unless the condition holds."""
    if not condition:
        raise CheckFailed(message)


def _close(found: Tensor, expected: Tensor, fault: str) -> str:
    worst = float((found - expected).abs().max().item()) if found.numel() else 0.0
    require(
        worst <= TOLERANCE * (1.0 + float(expected.abs().max().item())), f"{fault}: {worst:.3g}"
    )
    return f"largest difference {worst:.1e}"


def _weights(algorithm: Algorithm, inputs: LossInputs) -> dict[str, Tensor]:
    num = len(inputs.rewards) if inputs.rewards is not None else 0
    weights = dict(algorithm.sequence_weights(metadata_of(inputs, num)))
    weights.pop("value", None)
    return weights


def _total_gradient(algorithm: Algorithm, inputs: LossInputs) -> Tensor:
    """Compute d total loss / d logprobs [N], zeros where nothing trains."""
    total = total_loss(algorithm, inputs, _weights(algorithm, inputs))
    if not total.requires_grad:
        return torch.zeros_like(inputs.logprobs)
    (grad,) = torch.autograd.grad(total, inputs.logprobs, allow_unused=True)
    return torch.zeros_like(inputs.logprobs) if grad is None else grad


def _inputs(algorithm: Algorithm, **changes: Any) -> LossInputs:
    return random_inputs(reward_parts=algorithm.loss_reward_parts, **changes)


def _credit(algorithm: Algorithm, *arguments: Any, **changes: Any) -> CreditInputs:
    return credit_inputs(*arguments, reward_parts=algorithm.advantage.reward_parts, **changes)


def _rewards(algorithm: Algorithm, num_sequences: int) -> list[dict[str, float]]:
    """Return the parts of as many rewards, with all that the algorithm reads."""
    return [dict.fromkeys(algorithm.reward_parts, n % 2.0) for n in range(num_sequences)]


def log_line(algorithm: Algorithm) -> str:
    """Check that a pickled copy equals the algorithm, and that its repr is one line."""
    require(pickle.loads(pickle.dumps(algorithm)) == algorithm, "a pickled copy differs")
    require("\n" not in repr(algorithm), "its repr has several lines")
    return f"{len(repr(algorithm))} characters"


def _reads(part: TokenPart | Advantage, inputs: LossInputs | CreditInputs) -> set[str]:
    """Record the columns that a part touches when called, metrics included.

    A part of the reward is "reward part NAME".
    """
    seen: set[str] = set()

    class Parts(Mapping[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            seen.add(f"{REWARD_PART}{name}")
            if name not in given:
                raise CheckFailed(f"{type(part).__name__} reads {REWARD_PART}{name}, undeclared")
            return given[name]

        def __iter__(self) -> Iterator[str]:
            return iter(given)

        def __len__(self) -> int:
            return len(given)

    class Recording(type(inputs)):  # type: ignore[misc]
        __slots__ = ()

        def __getattribute__(self, name: str) -> object:
            seen.add(name)
            return super().__getattribute__(name)

    given = dict(inputs.reward_parts or {})
    values = {item.name: getattr(inputs, item.name) for item in fields(inputs)}
    recording = Recording(**values | {"reward_parts": Parts()})
    seen.clear()
    part(recording)  # type: ignore[operator]
    if isinstance(part, TokenPart):
        part.metrics(recording)
    return {name for name in seen if name in vocabulary(part)[1] or name.startswith(REWARD_PART)}


def columns(algorithm: Algorithm) -> str:
    """Check that every part reads the columns and reward parts it declares, and no other."""
    parts: Iterable[TokenPart | Advantage] = algorithm.trained_parts()
    for part in parts:
        inputs: LossInputs | CreditInputs = (
            _credit(algorithm) if isinstance(part, Advantage) else _inputs(algorithm)
        )
        seen, name = _reads(part, inputs), type(part).__name__
        declared = part.columns | {f"{REWARD_PART}{own}" for own in part.reward_parts}
        require(seen >= declared, f"{name} declares {sorted(declared - seen)}, unread")
        require(seen <= declared, f"{name} reads {sorted(seen - declared)}, undeclared")
    parts = {f"{REWARD_PART}{name}" for name in algorithm.reward_parts}
    return f"reads {', '.join(sorted(algorithm.required_columns | parts)) or 'nothing more'}"


def finite_on_edges(algorithm: Algorithm) -> str:
    """Check that gradients are finite where masks are empty and ratios are extreme."""
    base = _inputs(algorithm)
    far = torch.linspace(-80.0, 80.0, base.loss_mask.numel(), dtype=torch.float64)
    nan = torch.full_like(far, torch.nan)
    masked_nan = {
        name: torch.where(base.loss_mask, getattr(base, name).detach(), nan)
        for name in ("old_logprobs", "rollout_logprobs", "ref_logprobs", "advantages")
    }
    cases = {
        "empty mask": replace(base, loss_mask=torch.zeros_like(base.loss_mask)),
        "extreme ratios": replace(base, old_logprobs=base.logprobs.detach() + far),
        "extreme mismatch": replace(base, rollout_logprobs=base.logprobs.detach() + far),
        "extreme reference": replace(base, ref_logprobs=base.logprobs.detach() + far),
        "zero advantages": replace(base, advantages=torch.zeros_like(base.advantages)),
        "zero entropy": replace(base, old_entropy=torch.zeros_like(far)),
        "nan under the mask": replace(base, **masked_nan),
    }
    for name, inputs in cases.items():
        grad = _total_gradient(algorithm, inputs)
        require(bool(torch.isfinite(grad).all()), f"{name}: non-finite gradient")
        require(bool((grad[~inputs.loss_mask] == 0).all()), f"{name}: a masked token trains")
    return f"{len(cases)} cases"


def credit_on_edges(algorithm: Algorithm) -> str:
    """Check that advantages are finite and masked on edge cases.

    Equal rewards, groups of one and truncated responses.
    """
    num = len(LENGTHS)
    cases = {
        "equal rewards": _credit(algorithm, rewards=torch.full((num,), 0.1, dtype=torch.float64)),
        "group of one": _credit(algorithm, group_size=1),
        "empty mask": _credit(algorithm, [0] * num),
        "one token": _credit(algorithm, [1], group_size=1),
    }
    for name, inputs in cases.items():
        advantages = algorithm.credit(inputs).advantages  # raises when not finite
        require(bool((advantages[~inputs.loss_mask] == 0).all()), f"{name}: credit under the mask")
    lengths = torch.tensor(LENGTHS)
    rewards = torch.zeros(num)
    truncated = RewardInputs(
        rewards=rewards, response_lengths=lengths, truncated=torch.ones(num, dtype=torch.bool)
    )
    require(
        algorithm.trains(truncated).shape == rewards.shape, "trains: not one value per sequence"
    )
    shaped = algorithm.shape_rewards(truncated)
    require(bool(torch.isfinite(shaped).all()), "all truncated: non-finite reward")
    groups = algorithm.keep_groups(rewards, torch.arange(num) // 2, _rewards(algorithm, num))
    require(groups.shape == (num // 2,), "keep_groups: not one value per group")
    return f"{len(cases) + 1} cases"


def observations(algorithm: Algorithm) -> str:
    """Check that credit does not depend on the number and the place of observation tokens.

    A conversation of two turns is credited with observations of 0, 1 and 7 tokens between and
    behind the turns, which another number of tokens must not change.
    """
    expected: Tensor | None = None
    for gap in (0, 1, 7):
        inputs = credit_with_observations(gap, algorithm.advantage.reward_parts)
        credit = algorithm.credit(inputs)
        returns = [] if credit.returns is None else [credit.returns[inputs.loss_mask]]
        found = torch.stack([credit.advantages[inputs.loss_mask], *returns])
        expected = found if expected is None else expected
        _close(found, expected, f"observations of {gap} tokens change the credit")
    return "gaps of 0, 1 and 7 tokens"


def central_differences(algorithm: Algorithm) -> str:
    """Check that autograd of the policy loss is the derivative of the loss's value.

    A loss that declares `exact_gradient = False` passes.
    """
    loss = algorithm.policy_loss
    if not loss.exact_gradient:
        return "declares stop-gradients (exact_gradient = False)"
    bare = Algorithm(
        name="bare", advantage=GroupRelative(), policy_loss=loss, aggregation=SequenceMean()
    )
    inputs = _inputs(algorithm, spread=0.4)
    weights = _weights(bare, inputs)
    grad = _total_gradient(bare, inputs)
    step, worst = 1e-6, 0.0
    for row in torch.nonzero(inputs.loss_mask).flatten()[::3].tolist():
        move = torch.zeros_like(inputs.logprobs)
        move[row] = step
        ahead, behind = (
            float(total_loss(bare, replace(inputs, logprobs=at), weights).item())
            for at in (inputs.logprobs.detach() + move, inputs.logprobs.detach() - move)
        )
        worst = max(worst, abs((ahead - behind) / (2 * step) - float(grad[row].item())))
    require(worst < 1e-6, f"autograd and differences disagree by {worst:.3g}")
    return f"largest difference {worst:.1e}"


def invariance(algorithm: Algorithm) -> str:
    """Check that the gradient ignores micro-batches, ranks, the order of sequences and padding."""
    inputs = _inputs(algorithm)
    weights, whole = _weights(algorithm, inputs), _total_gradient(algorithm, inputs)
    detail = ""
    for splits in ([[0, 1, 2], [3], [4, 5, 6, 7]], [[7, 3, 5, 1], [2, 0, 6, 4]]):
        summed = torch.zeros_like(whole)
        for order in splits:
            part = select_sequences(inputs, order)
            local = {name: weight[order] for name, weight in weights.items()}
            total = total_loss(algorithm, part, local)
            if total.requires_grad:
                (grad,) = torch.autograd.grad(total, inputs.logprobs)
                summed = summed + grad
        detail = _close(summed, whole, f"split {splits} moves the gradient")
    padded = replace(inputs, advantages=torch.where(inputs.loss_mask, inputs.advantages, 1e6))
    _close(_total_gradient(algorithm, padded), whole, "content of masked tokens matters")
    return detail


def _leaf(column: Tensor) -> Tensor:
    """Copy a column; a floating-point copy collects its gradient."""
    return column.detach().clone().requires_grad_() if column.is_floating_point() else column


def stop_gradients(algorithm: Algorithm) -> str:
    """Check that nothing but the current policy receives a gradient."""
    inputs = _inputs(algorithm)
    given = {item.name: getattr(inputs, item.name) for item in fields(inputs)}
    parts = given.pop("reward_parts")
    leaves = {name: _leaf(column) for name, column in given.items()}
    part_leaves = {name: _leaf(values) for name, values in parts.items()}
    leaf_inputs = LossInputs(**leaves, reward_parts=part_leaves)
    torch.autograd.backward(total_loss(algorithm, leaf_inputs, _weights(algorithm, leaf_inputs)))
    allowed = {"logprobs"} | ({"entropy"} if algorithm.entropy_gradient else set())
    for name, leaf in [*leaves.items(), *part_leaves.items()]:
        touched = leaf.grad is not None and bool((leaf.grad != 0).any())
        require(name in allowed or not touched, f"{name} receives a gradient")
    return f"only {', '.join(sorted(allowed))}"


def gates_keep_values(algorithm: Algorithm) -> str:
    """Check that gates change gradients, never loss values."""
    inputs = _inputs(algorithm)
    gated = algorithm.token_loss(inputs).terms["policy"]
    free = replace(algorithm, gates={}).token_loss(inputs).terms["policy"]
    require(torch.equal(gated.detach(), free.detach()), "a gate changes the loss value")
    return f"{len(algorithm.gates)} gates"


def on_policy(algorithm: Algorithm) -> str:
    """Check that the policy loss is REINFORCE at pi = pi_old = mu, where the loss claims so."""
    loss = algorithm.policy_loss
    if not loss.on_policy_reinforce:
        return "does not claim it (on_policy_reinforce = False)"
    base = _inputs(algorithm)
    now = base.logprobs.detach()
    inputs = replace(base, old_logprobs=now, rollout_logprobs=now, epoch_logprobs=now)
    bare = replace(algorithm, regularizers={}, auxiliaries={}, gates={})
    expected = -torch.where(inputs.loss_mask, inputs.advantages, 0.0)
    return _close(gradient(bare, inputs), expected, "gradient is not -advantage")


def learning(algorithm: Algorithm) -> str:
    """Check that training raises the expected reward of a small task from 0.25 to above 0.5."""
    curve = train(algorithm)
    seen = f"reward {curve.before:.2f} -> {curve.after:.2f}"
    require(curve.after > 0.5, f"{seen}, short of 0.5")
    return seen
