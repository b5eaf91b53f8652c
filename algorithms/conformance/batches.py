"""Small random batches with every column filled in.

Inputs for checks and tests. Runs in the process of `ballast check-algorithm`, of a dry run or of a
test. Not realistic text. Shapes: N tokens packed, S sequences, G groups.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from algorithms.algorithm import Algorithm
from algorithms.inputs import BatchMetadata, CreditInputs, LossInputs

#: Trainable and prompt tokens of each sequence; one of them has no trainable token.
LENGTHS = (3, 5, 2, 8, 0, 4, 6, 1)
PROMPT = 2


def random_inputs(
    lengths: Sequence[int] = LENGTHS,
    *,
    seed: int = 0,
    spread: float = 0.3,
    dtype: torch.dtype = torch.float64,
    reward_parts: Sequence[str] = (),
) -> LossInputs:
    """Make a micro-batch: `lengths` trainable tokens a sequence, behind `PROMPT` masked ones each.

    `spread` is the scale of ln w; advantages are constant within a sequence. Rewards have the
    `reward_parts` that are named.
    """
    generator = torch.Generator().manual_seed(seed)
    totals = torch.tensor([PROMPT + length for length in lengths])
    ids = torch.repeat_interleave(torch.arange(len(lengths)), totals)
    starts = totals.cumsum(0) - totals
    mask = torch.arange(ids.numel()) - starts[ids] >= PROMPT
    num = ids.numel()

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(num, generator=generator, dtype=dtype)

    old = -noise(1.0).abs() - 0.05
    old_entropy = noise(1.0).abs() + 0.1
    rewards = torch.randint(0, 2, (len(lengths),), generator=generator).to(dtype)
    advantages = torch.randn(len(lengths), generator=generator, dtype=dtype)[ids]
    return LossInputs(
        logprobs=(old + noise(spread)).requires_grad_(),
        old_logprobs=old,
        advantages=torch.where(mask, advantages, 0.0),
        loss_mask=mask,
        sequence_ids=ids,
        rollout_logprobs=old + noise(0.1),
        ref_logprobs=old + noise(0.2),
        epoch_logprobs=old + noise(0.1),
        entropy=(old_entropy * (1.0 + noise(0.05))).requires_grad_(),
        old_entropy=old_entropy,
        values=noise(1.0).requires_grad_(),
        old_values=noise(1.0),
        returns=noise(1.0),
        rewards=rewards,
        staleness=torch.arange(num).to(dtype) % 3,
        truncated=torch.arange(len(lengths)) % 3 == 1,
        turn_numbers=torch.where(mask, torch.arange(num).to(dtype) % 2 + 1.0, 0.0),
        group_ids=torch.arange(len(lengths)) // 2,
        reward_parts=_parts(reward_parts, len(lengths), dtype),
    )


def _parts(names: Sequence[str], num_sequences: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Make values [S] of every named part, different within a group."""
    numbers = torch.arange(num_sequences, dtype=dtype)
    return {name: (numbers + place) % 2 for place, name in enumerate(names)}


def metadata_of(inputs: LossInputs, num_sequences: int, group_size: int = 2) -> BatchMetadata:
    """Make the metadata of a batch that is one micro-batch; siblings lie next to each other."""
    lengths = torch.zeros(num_sequences, dtype=torch.int64)
    lengths.index_add_(0, inputs.sequence_ids, inputs.loss_mask.to(torch.int64))
    rewards = inputs.rewards if inputs.rewards is not None else torch.zeros(num_sequences)
    return BatchMetadata(
        lengths=lengths,
        group_ids=torch.arange(num_sequences) // group_size,
        rewards=rewards.float(),
    )


def credit_inputs(
    lengths: Sequence[int] = LENGTHS,
    *,
    rewards: Tensor | None = None,
    group_size: int = 2,
    reward_parts: Sequence[str] = (),
) -> CreditInputs:
    """Make a step's batch with the columns of :func:`random_inputs`."""
    inputs = random_inputs(lengths, reward_parts=reward_parts)
    num = len(lengths)
    chosen = rewards if rewards is not None else (torch.arange(num) % 3 == 0).double()
    values = inputs.values
    return CreditInputs(
        shaped_rewards=chosen,
        group_ids=torch.arange(num) // group_size,
        sequence_ids=inputs.sequence_ids,
        loss_mask=inputs.loss_mask,
        truncated=inputs.truncated,
        reward_parts=inputs.reward_parts,
        old_logprobs=inputs.old_logprobs,
        ref_logprobs=inputs.ref_logprobs,
        rollout_logprobs=inputs.rollout_logprobs,
        values=None if values is None else values.detach(),
    )


def credit_with_observations(gap: int, reward_parts: Sequence[str] = ()) -> CreditInputs:
    """Make two groups of two rollouts of two turns, `gap` observed tokens behind every turn.

    Turns have 3 and 2 tokens; the columns of the trainable tokens are the same for every `gap`.
    """
    row = [False] * PROMPT + [True] * 3 + [False] * gap + [True] * 2 + [False] * gap
    turns = [-1] * PROMPT + [0] * 3 + [-1] * gap + [1] * 2 + [-1] * gap
    mask = torch.tensor(row * 4)
    turn_ids = torch.tensor([-1 if t < 0 else 2 * k + t for k in range(4) for t in turns])
    generator = torch.Generator().manual_seed(0)

    def column() -> Tensor:
        values = torch.full((mask.numel(),), 1e6, dtype=torch.float64)  # of tokens that don't train
        drawn = -torch.rand(int(mask.sum()), generator=generator, dtype=torch.float64)
        return values.masked_scatter(mask, drawn)

    return CreditInputs(
        shaped_rewards=torch.tensor([1.0, 0.0, 0.5, 1.0], dtype=torch.float64),
        group_ids=torch.tensor([0, 0, 1, 1]),
        sequence_ids=torch.repeat_interleave(torch.arange(4), len(row)),
        loss_mask=mask,
        truncated=torch.zeros(4, dtype=torch.bool),
        reward_parts=_parts(reward_parts, 4, torch.float64),
        turn_ids=turn_ids,
        turn_rewards=torch.tensor([0.25, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 1.0], dtype=torch.float64),
        turn_states=torch.tensor([7, 8, 7, 9, 7, 8, 7, 8]),
        old_logprobs=column(),
        ref_logprobs=column(),
        rollout_logprobs=column(),
        values=column(),
    )


def select_sequences(inputs: LossInputs, order: Sequence[int]) -> LossInputs:
    """Select the sequences `order` of a batch, in that order, as a batch of their own."""
    wanted = [torch.nonzero(inputs.sequence_ids == index).flatten() for index in order]
    rows = torch.cat(wanted)
    given = inputs.reward_parts or {}
    parts = {name: values[list(order)] for name, values in given.items()}
    columns: dict[str, Any] = {"reward_parts": parts}
    for item in fields(inputs):
        column = getattr(inputs, item.name)
        if item.name in columns:
            continue
        per_sequence = item.name in ("rewards", "truncated", "group_ids")
        chosen = torch.tensor(list(order)) if per_sequence else rows
        columns[item.name] = None if column is None else column[chosen]
    columns["sequence_ids"] = torch.repeat_interleave(
        torch.arange(len(wanted)), torch.tensor([len(part) for part in wanted])
    )
    return LossInputs(**columns)


def total_loss(algorithm: Algorithm, inputs: LossInputs, weights: dict[str, Tensor]) -> Tensor:
    """Reduce losses as the framework does, with `weights` [S] of the batch's sequences -> []."""
    terms = algorithm.token_loss(inputs).terms
    total = inputs.logprobs.new_zeros(())
    for name, term in terms.items():
        per_token = weights[name].to(term.dtype)[inputs.sequence_ids]
        total = total + (term * per_token)[inputs.loss_mask].sum()
    return total


def gradient(algorithm: Algorithm, inputs: LossInputs) -> Tensor:
    """Compute d (sum of unreduced policy loss) / d logprobs [N]."""
    loss = algorithm.token_loss(inputs).terms["policy"].sum()
    if not loss.requires_grad:
        return torch.zeros_like(inputs.logprobs)
    (grad,) = torch.autograd.grad(loss, inputs.logprobs, allow_unused=True)
    return torch.zeros_like(inputs.logprobs) if grad is None else grad
