"""The kinds of parts an algorithm is made of: inherit one to write your own.

What it is: abstract bases with the call each part answers. What it is not: a registry; the dotted
path in YAML finds a class. A part is a frozen keyword-only dataclass that declares the `columns`
it reads, checks its own fields in `__post_init__` and returns per-token values without reducing.
Shapes: N tokens of a packed micro-batch, S sequences, G groups.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from algorithms.inputs import BatchMetadata, Credit, CreditInputs, LossInputs, RewardInputs
from algorithms.segments import num_segments


class Part(ABC):  # noqa: B024 - its kinds have the abstract calls
    """Base of all parts: the columns it reads beyond those that every batch carries."""

    columns: frozenset[str] = frozenset()


class TokenPart(Part):
    """A part that sees a micro-batch and may report per-token metrics."""

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """Flat name -> [N], detached."""
        del inputs
        return {}


class Advantage(Part):
    """Credit assignment over the whole step's batch."""

    needs_groups: bool = False  # True: a group of one response is an error at composition

    @abstractmethod
    def __call__(self, inputs: CreditInputs) -> Credit:
        """Return advantages [N], zero where `loss_mask` is False."""


class PolicyLoss(TokenPart):
    """The loss whose gradient is the policy gradient."""

    on_policy_reinforce: bool = True  # at pi = pi_old, d loss / d logprobs == -advantage
    exact_gradient: bool = True  # False: a stop-gradient makes it no derivative of the value

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return the unreduced loss [N]; its autograd gradient is what trains."""


class Gate(TokenPart):
    """Decides which tokens pass a gradient; the loss value is kept either way."""

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return keep [N] bool."""


class Regularizer(TokenPart):
    """A term added to the policy loss under the same aggregation, outside gates and corrections."""

    entropy_gradient: bool = False  # True: `inputs.entropy` must carry a gradient

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return the unreduced penalty [N], coefficient included."""


class Auxiliary(TokenPart):
    """A loss term with a denominator of its own."""

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
    """Turns token losses into one scalar by weights from global metadata."""

    @abstractmethod
    def __call__(self, metadata: BatchMetadata) -> Tensor:
        """Return the multiplier of each sequence's tokens [S]."""


class ValueLoss(TokenPart):
    """The critic's loss."""

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return the unreduced loss [N] of `inputs.values`."""


class RewardShaping(Part):
    """Changes rewards before credit assignment."""

    @abstractmethod
    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Return the new rewards [S]."""


class Filter(Part):
    """Chooses what trains: whole groups by their rewards, or single sequences."""

    def keep_groups(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        """`rewards` [S] before shaping, `group_ids` [S] in 0..G-1 -> [G] bool."""
        del rewards
        return torch.ones(num_segments(group_ids), dtype=torch.bool, device=group_ids.device)

    def settled(self, rewards: Tensor, num_left: int) -> bool:
        """Whether the verdict on one group is the same whatever its other siblings bring.

        True is a promise about every number of them from 0 to `num_left`, and every reward. A
        filter that chooses groups says so only at the end, unless it knows better.

        Args:
            rewards: [S] before shaping, of the siblings that are scored.
            num_left: siblings that are not.
        """
        del rewards
        return num_left == 0 or type(self).keep_groups is Filter.keep_groups

    def trains(self, inputs: RewardInputs) -> Tensor:
        """Return [S] bool; a sequence that is False gets an all-False `loss_mask`."""
        return torch.ones_like(inputs.truncated, dtype=torch.bool)
