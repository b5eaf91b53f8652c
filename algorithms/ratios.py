"""Probability ratios from log-probs, safe to exponentiate.

The one place where log-ratios are clamped. Runs in the ranks that train. Not clipping, which
belongs to the losses. Shapes: all tensors [N].
"""

import torch
from torch import Tensor

from algorithms.inputs import LossInputs

#: exp(20) = 4.9e8: far outside any trust region, still finite in float32 after multiplication.
LOG_RATIO_LIMIT = 20.0


def clamped_log_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return `numerator - denominator` [N], clamped to +-20; no gradient outside."""
    return (numerator - denominator).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def policy_log_ratio(inputs: LossInputs) -> Tensor:
    """Return the log-ratio ln w = log pi - log pi_old [N], with gradient, clamped to +-20."""
    return clamped_log_ratio(inputs.logprobs, inputs.old_logprobs)


def policy_ratio(inputs: LossInputs) -> Tensor:
    """Return the ratio w = pi / pi_old [N], with gradient."""
    return policy_log_ratio(inputs).exp()


def straight_through_one(logprobs: Tensor) -> Tensor:
    """Return the ratio pi / sg(pi) [N]: the value 1 with the gradient of log pi."""
    return (logprobs - logprobs.detach()).exp()


def as_float(mask: Tensor, like: Tensor) -> Tensor:
    """Convert a mask to a detached 0/1 metric [N] in the floating type of `like`."""
    return torch.where(mask, 1.0, 0.0).to(like.dtype)
