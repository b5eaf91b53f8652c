"""Kinds of parts that an algorithm is made of: inherit one to write your own.

Abstract bases, each with the call that its parts implement. Not a registry: the dotted path in YAML
finds a class. A part is a frozen keyword-only dataclass that declares the `columns` it reads,
checks its own fields in `__post_init__` and returns per-token values without reducing. Filters,
shaping, aggregations, controllers and reference rules run in the driver, advantages in rank 0 of
the learner, all others in the ranks that train.
Shapes: N tokens of a packed micro-batch, S sequences, G groups.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from algorithms.inputs import BatchMetadata, Credit, CreditInputs, LossInputs, RewardInputs
from algorithms.segments import num_segments


class Part(ABC):  # noqa: B024 - its kinds have the abstract calls
    """Base of all parts: the columns that a part reads beyond those that every batch carries."""

    columns: frozenset[str] = frozenset()


class TokenPart(Part):
    """Part that reads a micro-batch and may report per-token metrics."""

    reward_parts: tuple[str, ...] = ()  # names of the reward's parts that it is given

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """Return flat name -> [N], detached."""
        del inputs
        return {}


class Advantage(Part):
    """Credit assignment over the whole step's batch."""

    needs_groups: bool = False  # True: a group of one response is an error at composition
    #: Names of the reward's parts that it is given, and reads in place of the whole reward.
    reward_parts: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, inputs: CreditInputs) -> Credit:
        """Return advantages [N], zero where `loss_mask` is False."""


class PolicyLoss(TokenPart):
    """Loss whose gradient is the policy gradient.

    Tokens at which its metric `policy/clip_frac` or `policy/clip_dual_frac` is not 0 are recorded
    as clipped (:mod:`algorithms.flags`).
    """

    on_policy_reinforce: bool = True  # at pi = pi_old, d loss / d logprobs == -advantage
    exact_gradient: bool = True  # False: a stop-gradient makes it no derivative of the value

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return the unreduced loss [N]; its autograd gradient is what trains."""


class Gate(TokenPart):
    """Choice of the tokens that pass a gradient; the loss value is kept either way."""

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return keep [N] bool."""


class Regularizer(TokenPart):
    """Term added to the policy loss under the same aggregation, outside gates and corrections."""

    entropy_gradient: bool = False  # True: `inputs.entropy` must carry a gradient

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return the unreduced penalty [N], coefficient included."""


class Auxiliary(TokenPart):
    """Loss term with a denominator of its own."""

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return the unreduced loss [N], coefficient included."""

    @abstractmethod
    def weights(self, metadata: BatchMetadata) -> Tensor:
        """Return the multiplier of each sequence's tokens [S]."""


class Correction(TokenPart):
    """Sampler/trainer mismatch: a detached factor on the policy loss."""

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return the factor [N], 0 where dropped. Dropped tokens stay in the denominator."""


class Aggregation(Part):
    """Weights from global metadata that make token losses one scalar."""

    @abstractmethod
    def __call__(self, metadata: BatchMetadata) -> Tensor:
        """Return the multiplier of each sequence's tokens [S]."""


class ValueLoss(TokenPart):
    """Loss of the critic."""

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return the unreduced loss [N] of `inputs.values`."""


class RewardShaping(Part):
    """Change of rewards before credit assignment."""

    @abstractmethod
    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Return the new rewards [S]."""


class Filter(Part):
    """Choice of what trains: whole groups by their rewards, or single sequences."""

    part: str = ""  # reward part that `keep_groups` gets for rewards, such as "accuracy"

    def keep_groups(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        """Mark the groups to keep [G] bool, from `rewards` [S] before shaping and `group_ids` [S].

        Group ids are in 0..G-1. With `part` the rewards are the values of that part alone.
        """
        del rewards
        return torch.ones(num_segments(group_ids), dtype=torch.bool, device=group_ids.device)

    def settled(self, rewards: Tensor, num_left: int) -> bool:
        """Return True where no reward to come can change the verdict on one group.

        True is a promise about every number of further siblings from 0 to `num_left`, and every
        reward. A filter that chooses groups returns True only at the end, unless the filter
        overrides this method.

        Args:
            rewards: [S] before shaping, of the siblings that are scored.
            num_left: siblings that are not.
        """
        del rewards
        return num_left == 0 or type(self).keep_groups is Filter.keep_groups

    def trains(self, inputs: RewardInputs) -> Tensor:
        """Return [S] bool; a sequence that is False gets an all-False `loss_mask`."""
        return torch.ones_like(inputs.truncated, dtype=torch.bool)
