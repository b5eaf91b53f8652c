"""Auxiliary terms: losses with a denominator of their own.

Holds the likelihood of correct responses. The loss runs in the learner's ranks, its weights in the
driver. Not a regularizer, which shares the policy loss's aggregation. Shapes: N tokens, S
sequences.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.inputs import BatchMetadata, LossInputs
from algorithms.parts import Auxiliary
from algorithms.validation import check_at_least, check_finite


@dataclass(frozen=True, kw_only=True)
class CorrectLikelihood(Auxiliary):
    """Likelihood of correct responses, averaged over their tokens. GPPO (2508.07629) Eq. 13; ERC.

    L = -coefficient log pi. ERC (2512.05591) uses the term too.

    The weights select: a correct response has 1 / (tokens of all correct responses of the
    optimizer batch), any other 0. No correct response, no term. The paper's equation prints pi
    without the logarithm; the released code uses -log pi. The code averages per micro-batch, this
    term over the optimizer batch.

    Attributes:
        coefficient: alpha; 0.1.
        min_reward: a response is correct from this reward on, before shaping; the released code
            requires exactly 1.0.
    """

    coefficient: float = 0.1
    min_reward: float = 1.0

    def __post_init__(self) -> None:
        check_at_least("coefficient", self.coefficient, 0.0)
        check_finite("coefficient", self.coefficient)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.Auxiliary`."""
        return -self.coefficient * inputs.logprobs

    def weights(self, metadata: BatchMetadata) -> Tensor:
        """See :class:`algorithms.parts.Auxiliary`."""
        correct = metadata.rewards >= self.min_reward
        tokens = metadata.lengths[correct].sum().float().clamp(min=1.0)
        return torch.where(correct, 1.0 / tokens, 0.0)
