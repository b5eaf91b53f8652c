"""Vocabulary between the framework and an algorithm: plain frozen records of tensors.

Everything that an algorithm may read, and everything that it returns. Made and read in the driver
(rewards, batch metadata) and in the ranks that train (credit, loss). No method here computes a
loss. Data flows, in the order of one training step,

    RewardInputs -> (shaped rewards) -> CreditInputs -> Credit -> LossInputs -> TokenLoss
                                        BatchMetadata ------------> sequence weights

Shapes: N tokens, packed without padding; S sequences; G groups (siblings of one prompt).
Columns are aligned to tokens: element i of `logprobs` is log p(token_i | tokens_<i).

The worked examples follow one group of two responses through the step: tokens `[5 6 7]` and
`[8 9]`, of which the first of each is the prompt; rewards 1 and 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

# Columns that a part of each kind may declare. The framework derives from them which roles run.
#: Of an advantage: what exists before credit, fields of `CreditInputs`.
CREDIT_COLUMNS = frozenset({"old_logprobs", "ref_logprobs", "rollout_logprobs", "values"})
#: Of a part of the policy's loss, fields of `LossInputs`.
LOSS_COLUMNS = frozenset(
    {
        "old_logprobs",
        "rollout_logprobs",
        "ref_logprobs",
        "epoch_logprobs",
        "entropy",
        "old_entropy",
        "rewards",
        "staleness",
        "truncated",
        "turn_numbers",
        "group_ids",
    }
)
#: Of a value loss, fields of `LossInputs`.
VALUE_COLUMNS = frozenset({"values", "old_values", "returns", "rewards"})


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInputs:
    """One packed micro-batch. Whole sequences only: a sequence is never split over micro-batches.

    Worked example (N = 5, S = 2):
        logprobs      [ 0.0 -1.0 -0.5  0.0 -2.0]     loss_mask    [F T T F T]
        old_logprobs  [ 0.0 -1.1 -0.5  0.0 -1.9]     sequence_ids [0 0 0 1 1]
        advantages    [ 0.0  0.71 0.71 0.0 -0.71]    rewards      [1.0 0.0]

    Attributes:
        logprobs: [N] log pi_theta, float32, carries the gradient.
        old_logprobs: [N] log pi_old, the policy that started the step, computed by the trainer.
            Where no part declares the column, pass `logprobs.detach()`.
        advantages: [N] credit of each token.
        loss_mask: [N] bool, True where the token trains.
        sequence_ids: [N] int64, sorted, 0..S-1.
        rollout_logprobs: [N] log mu, as the sampler reported them.
        ref_logprobs: [N] log-probs of the frozen reference.
        epoch_logprobs: [N] log-probs at the start of the current pass over the batch.
        entropy: [N] full-vocabulary entropy of pi_theta at the sampling temperature.
        old_entropy: [N] the same of pi_old.
        values: [N] critic outputs, with gradient; only in the critic's own loss.
        old_values: [N] critic outputs at credit time.
        returns: [N] regression targets of the critic.
        rewards: [S] the scorer's rewards, before any shaping.
        staleness: [N] weight versions between those that sampled the token and those that start
            the step; 0 for tokens that were not sampled.
        truncated: [S] bool, stopped by the length limit.
        turn_numbers: [N] number of the turn that sampled the token, from 1 in every rollout; 0 for
            tokens that were not sampled.
        group_ids: [S] int64, equal for siblings; labels of this micro-batch alone.
        reward_parts: name -> [S], before any shaping, of the parts of the reward that a part of the
            loss names. `reward_parts["format"][sequence_ids]` has one value per token.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    loss_mask: Tensor
    sequence_ids: Tensor
    rollout_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    epoch_logprobs: Tensor | None = None
    entropy: Tensor | None = None
    old_entropy: Tensor | None = None
    values: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None
    rewards: Tensor | None = None
    staleness: Tensor | None = None
    truncated: Tensor | None = None
    turn_numbers: Tensor | None = None
    group_ids: Tensor | None = None
    reward_parts: Mapping[str, Tensor] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CreditInputs:
    """Batch of the whole step, over all ranks: group and batch statistics are exact.

    A sequence is one rollout: where a rollout has several rows, its tokens follow each other as one
    sequence, so that statistics count rollouts.

    Worked example (N = 5, S = 2, G = 1, T = 2), a turn for each response:
        shaped_rewards [1.0 0.0]      sequence_ids [0 0 0 1 1]
        group_ids      [0 0]          loss_mask    [F T T F T]
        turn_rewards   [0.0 0.0]      turn_ids     [-1 0 0 -1 1]
        turn_states    [7 7]

    Attributes:
        shaped_rewards: [S] float32, after the algorithm's reward shaping.
        group_ids: [S] int64, 0..G-1.
        sequence_ids: [N] int64, sorted, 0..S-1.
        loss_mask: [N] bool.
        truncated: [S] bool, stopped by the length limit; needs no declaration.
        reward_parts: name -> [S] float32, of the parts that the advantage names.
        turn_ids: [N] int64, the turn that sampled the token, 0..T-1, sorted within a sequence; -1
            for tokens that were not sampled. Needs no declaration; None: every sequence has one
            turn.
        turn_rewards: [T] float32, share of the reward that each turn earned. What is left of
            `shaped_rewards` is earned by the last trainable token.
        turn_states: [T] int64, label of the state before each turn; equal in equal states.
        old_logprobs, ref_logprobs, rollout_logprobs, values: [N], where a part declares them.
    """

    shaped_rewards: Tensor
    group_ids: Tensor
    sequence_ids: Tensor
    loss_mask: Tensor
    truncated: Tensor | None = None
    reward_parts: Mapping[str, Tensor] | None = None
    turn_ids: Tensor | None = None
    turn_rewards: Tensor | None = None
    turn_states: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    rollout_logprobs: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Credit:
    """Advantages of all tokens, and the critic's targets.

    Worked example, `GroupRelative()`: mean 0.5, unbiased deviation 0.71, so 0.5 / 0.71 = 0.71
        advantages [0.0 0.71 0.71 0.0 -0.71]    returns None
        metrics    {"credit/informative_groups_frac": 1.0, "credit/reward_group_std_mean": 0.71,
                    "credit/advantage_max": 0.71, "credit/advantage_min": -0.71}

    Attributes:
        advantages: [N], zero where the token does not train.
        returns: [N] targets for a critic, or None.
        metrics: scalars of the whole batch, flat names.
    """

    advantages: Tensor
    returns: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardInputs:
    """Scored sequences, as reward shaping and sequence filters read them.

    Worked example (S = 2), the second response stopped by the length limit:
        rewards [1.0 0.0]    response_lengths [2 1]    truncated [F T]

    Attributes:
        rewards: [S] float32, as scored.
        response_lengths: [S] int64, sampled tokens.
        truncated: [S] bool, stopped by the length limit.
    """

    rewards: Tensor
    response_lengths: Tensor
    truncated: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchMetadata:
    """Shape of ONE optimizer batch, over all ranks and micro-batches: the source of denominators.

    Worked example (S = 2); `TokenMean()` makes sequence weights [1/3 1/3] of it:
        lengths [2 1]    group_ids [0 0]    rewards [1.0 0.0]

    Attributes:
        lengths: [S] int64, trainable tokens of each sequence (`loss_mask.sum()`); 0 is allowed.
        group_ids: [S] int64; any labels, equal for siblings.
        rewards: [S] float32, before shaping.
        rollout_ids: [S] int64; any labels, equal for the rows of one rollout. None: every row is a
            rollout. Aggregations are given rollouts, see `Algorithm.sequence_weights`.
    """

    lengths: Tensor
    group_ids: Tensor
    rewards: Tensor
    rollout_ids: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLoss:
    """Unreduced losses of a micro-batch.

    The training loss is the sum over terms and tokens of
    `loss_mask * terms[name] * sequence_weights[name][sequence_ids]`.

    Worked example, `Reinforce()`, -A log pi; under weights [1/3 1/3] the training loss is -0.12:
        terms   {"policy": [0.0 0.71 0.35 0.0 -1.41]}
        metrics {"policy/ratio": [1.0 1.11 1.0 1.0 0.90], ...}
        flags   [0 0 0 0 0]

    Attributes:
        terms: name -> [N]; "policy", and one entry per part with a normaliser of its own.
        metrics: name -> [N], detached. Averaged over `loss_mask` by the global token count; names
            that end in `_max` or `_min` are reduced by maximum or minimum.
        flags: [N] uint8, the tokens whose gradient was cut, see :mod:`algorithms.flags`.
    """

    terms: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor]
    flags: Tensor
