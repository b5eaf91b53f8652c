"""Assemble one step's batch in the driver, and divide it into plans for the learner's ranks.

Metadata in, plans out. A `StepBatch` names rows of trajectories that stay in the object store; a
`RankPlan` gives a learner rank the rows of its micro-batches and the weight of every sequence. No
token passes through here, and the only division of the whole system (`Algorithm.sequence_weights`)
happens here, over all ranks at once.

Legend: S sequences of a step, G groups, U optimizer updates, R ranks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from algorithms.algorithm import Algorithm
from algorithms.inputs import BatchMetadata, RewardInputs
from orchestrator.step.partition import SequenceCost
from orchestrator.step.samples import whole_samples
from orchestrator.step.update import Update, divide
from workers.data.plans import RankPlan, Slice
from workers.data.trajectory import RolloutGroup, TrajectoryMeta


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """Rows of a step, in order, and their places in the object store.

    Example, two groups of two siblings: the first in rows 4 and 5 of one record batch, the second
    in rows 0 and 1 of another; a filter masks the second group, whose rewards are equal:
        StepBatch(
            metas=(meta_0, meta_1, meta_2, meta_3),
            group_ids=np.array([0, 0, 1, 1]),
            rewards=np.array([1.0, 0.0, 1.0, 1.0], dtype=np.float32),
            shaped_rewards=np.array([1.0, 0.0, 1.0, 1.0], dtype=np.float32),
            trained=np.array([True, True, False, False]),
            slices=(Slice(batch=0, start=4, length=2), Slice(batch=1, start=0, length=2)),
            batches=(ref_0, ref_1),
        )

    Attributes:
        metas: S rows; a row of `rewards` and of every plan is an index into it.
        group_ids: [S] int64, 0..G-1.
        rewards: [S] float32, as scored.
        shaped_rewards: [S] float32, after reward shaping.
        trained: [S] bool, False where a filter masks the whole sequence.
        slices: rows of each object-store batch, in the order of `metas`.
        batches: the object references that `slices` counts.
        rollout_ids: [S] int64, 0, 1, ... in order; equal for the rows of one rollout. None: every
            row is a rollout of its own.
    """

    metas: tuple[TrajectoryMeta, ...]
    group_ids: npt.NDArray[np.int64]
    rewards: npt.NDArray[np.float32]
    shaped_rewards: npt.NDArray[np.float32]
    trained: npt.NDArray[np.bool_]
    slices: tuple[Slice, ...]
    batches: tuple[Any, ...]
    rollout_ids: npt.NDArray[np.int64] | None = None

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Trained tokens of each sequence [S]; 0 where a filter masks it."""
        own = np.asarray([meta.num_trained for meta in self.metas], dtype=np.int64)
        return np.where(self.trained, own, 0)

    @property
    def num_groups(self) -> int:
        """G."""
        return int(self.group_ids.max()) + 1 if len(self.group_ids) else 0


def reward_inputs(metas: Sequence[TrajectoryMeta]) -> RewardInputs:
    """Build the inputs of shaping and filters from scored trajectories [S].

    Rows of one rollout have its length: the tokens that were sampled in all of them.
    """
    lengths: Counter[str] = Counter()
    for meta in metas:
        lengths[meta.rollout_id] += meta.num_sampled
    sampled = [lengths[meta.rollout_id] for meta in metas]
    return RewardInputs(
        rewards=torch.tensor([meta.reward for meta in metas], dtype=torch.float32),
        response_lengths=torch.tensor(sampled, dtype=torch.int64),
        truncated=torch.tensor([meta.finish_reason == "length" for meta in metas]),
    )


def assemble(groups: Sequence[RolloutGroup], algorithm: Algorithm) -> StepBatch:
    """Assemble the usable rows of the chosen groups, shaped and filtered by the algorithm."""
    metas: list[TrajectoryMeta] = []
    group_ids: list[int] = []
    slices: list[Slice] = []
    batches: dict[Any, int] = {}  # reference -> number
    for number, group in enumerate(groups):
        source = batches.setdefault(group.batch, len(batches))
        for row in group.usable_rows():
            metas.append(group.metas[row])
            group_ids.append(number)
            slices.append(Slice(batch=source, start=group.start + row, length=1))
    inputs = reward_inputs(metas)
    return StepBatch(
        metas=tuple(metas),
        group_ids=np.asarray(group_ids, dtype=np.int64),
        rewards=inputs.rewards.numpy(),
        shaped_rewards=algorithm.shape_rewards(inputs).numpy(),
        trained=algorithm.trains(inputs).numpy(),
        slices=_joined(slices),
        batches=tuple(batches),
        rollout_ids=np.asarray(_numbered([meta.rollout_id for meta in metas]), dtype=np.int64),
    )


def _numbered(names: Sequence[str]) -> list[int]:
    """Assign a number to each different name, in the order in which they come."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


def _joined(slices: Sequence[Slice]) -> tuple[Slice, ...]:
    """Join neighbouring rows to one slice."""
    joined: list[Slice] = []
    for piece in slices:
        last = joined[-1] if joined else None
        if last and last.batch == piece.batch and last.start + last.length == piece.start:
            joined[-1] = Slice(batch=last.batch, start=last.start, length=last.length + 1)
        else:
            joined.append(piece)
    return tuple(joined)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Plans of all ranks for one step, with metrics of their balance.

    Attributes:
        ranks: one plan per learner rank, all with equal numbers of micro-batches per update.
        metrics: flat names.
    """

    ranks: tuple[RankPlan, ...]
    metrics: Mapping[str, float]


def plan_updates(
    batch: StepBatch,
    algorithm: Algorithm,
    *,
    groups_per_update: int,
    num_ranks: int,
    token_budget: int,
    cost: SequenceCost,
    share_prefixes: bool = False,
    num_passes: int = 1,
    seed: tuple[int, ...] = (0,),
    shuffled: bool = False,
    coefficients: Mapping[str, float] | None = None,
    version: int = 0,
) -> BatchPlan:
    """Divide a step into passes, optimizer updates, ranks and micro-batches.

    Whole groups go to one update, and a pass holds every group once: the first in the order in
    which they came unless `shuffled`, later ones shuffled by `seed`. A batch of fewer groups than a
    full one has fewer updates, not smaller ones: the learning rate is made for their size. Weights
    are computed once per update over all of its sequences, so the gradient depends neither on ranks
    nor on micro-batches.

    Args:
        batch: the step's rows.
        algorithm: its aggregation gives the weights of sequences.
        groups_per_update: groups that one optimizer update is made for; the nearest whole number
            of updates divides the groups that train.
        num_ranks: of the learner.
        token_budget: of a micro-batch.
        cost: of a sequence.
        share_prefixes: True to compute the prompt of siblings once in a micro-batch.
        num_passes: over the batch.
        seed: of the order of shuffled passes; distinct for every step.
        shuffled: shuffle the first pass too, where groups came in an order that depends on them,
            such as the short ones first.
        coefficients: of the algorithm, for this step.
        version: label of the weights that start the step.
    """
    trained = batch.lengths  # [S]
    training = len(np.unique(batch.group_ids[trained > 0]))  # groups with a token that trains
    num_updates = max(1, math.floor(training / groups_per_update + 0.5))
    first = 0 if shuffled else 1  # pass that is shuffled
    updates: list[Update] = []
    for part in _parts(batch.num_groups, num_updates, num_passes, seed, first=first):
        rows = np.flatnonzero(np.isin(batch.group_ids, part))  # [rows of this update]
        weights = algorithm.sequence_weights(
            BatchMetadata(
                lengths=torch.from_numpy(trained[rows]),
                group_ids=torch.from_numpy(batch.group_ids[rows]),
                rewards=torch.from_numpy(batch.rewards[rows]),
                rollout_ids=None
                if batch.rollout_ids is None
                else torch.from_numpy(batch.rollout_ids[rows]),
            )
        )
        trains = trained[rows] > 0
        active = rows[trains]
        updates.append(
            divide(
                active,
                [batch.metas[row] for row in active],
                batch.group_ids[active],
                {name: weight.numpy()[trains] for name, weight in weights.items()},
                num_ranks=num_ranks,
                token_budget=token_budget,
                cost=cost,
                share_prefixes=share_prefixes,
            )
        )
    ranks = tuple(
        RankPlan(
            updates=tuple(tuple(update.micro_batches[rank]) for update in updates),
            num_passes=num_passes,
            coefficients=dict(coefficients or {}),
            version=version,
        )
        for rank in range(num_ranks)
    )
    return BatchPlan(ranks=ranks, metrics=_metrics(updates))


def _metrics(updates: Sequence[Update]) -> dict[str, float]:
    """Return the balance of a step's updates as metrics."""
    whole = sum(update.num_tokens for update in updates)
    computed = sum(update.spread.num_tokens for update in updates)
    return {
        "learner/rank_imbalance": max(update.spread.imbalance for update in updates),
        "learner/micro_batch_fill_frac": float(np.mean([u.spread.fill_frac for u in updates])),
        "learner/micro_batches": float(sum(u.spread.num_micro_batches for u in updates)),
        "learner/shared_prefix_frac": 1.0 - computed / whole if whole else 0.0,
        "learner/updates": float(len(updates)),
    }


def _parts(
    num_groups: int, num_updates: int, num_passes: int, seed: tuple[int, ...], *, first: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the groups of every update, pass after pass, shuffled from pass `first` on."""
    for number in range(num_passes):
        order = np.arange(num_groups)
        if number >= first:
            order = np.random.default_rng([*seed, number]).permutation(num_groups)
        yield from np.array_split(order, num_updates)


def batch_metrics(batch: StepBatch, version: int) -> dict[str, float]:
    """Return rewards, lengths and staleness of a step as metrics."""
    oldest = np.asarray([meta.min_version for meta in batch.metas])
    newest = np.asarray([meta.max_version for meta in batch.metas])
    return {
        **sample_metrics(batch.metas),
        "reward/shaped_mean": float(batch.shaped_rewards.mean()),
        "staleness/max": float(version - oldest.min()),
        "staleness/mean": float(version - (oldest + newest).mean() / 2),
    }


def sample_metrics(metas: Sequence[TrajectoryMeta]) -> dict[str, float]:
    """Return rewards, lengths and turns of samples, of which at least one is scored, as metrics."""
    metas = whole_samples(metas)
    rewards = np.asarray([m.reward for m in metas if m.reward is not None], dtype=np.float32)
    sampled = np.asarray([meta.num_sampled for meta in metas], dtype=np.float64)
    metrics = {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()),
        "rollout/response_tokens_mean": float(sampled.mean()),
        "rollout/response_tokens_max": float(sampled.max()),
        "rollout/truncated_frac": float(np.mean([m.finish_reason == "length" for m in metas])),
        "rollout/tokens": float(sampled.sum()),
        "rollout/sequences": float(len(metas)),
        "rollout/turns_mean": float(np.mean([meta.num_turns for meta in metas])),
        "rollout/turns_max": float(max(meta.num_turns for meta in metas)),
        "reward/latency_s": float(np.mean([meta.reward_s for meta in metas])),
    }
    for part in sorted({name for meta in metas for name in meta.reward_parts}):
        values = [meta.reward_parts[part] for meta in metas if part in meta.reward_parts]
        metrics[f"reward/part/{part}"] = float(np.mean(values))
    return metrics
