"""Preparation of a micro-batch before any part reads its columns, and metrics of the ratio.

Holds the stop-gradients and the neutral values under the mask, in one place, so that no part has to
repeat them. Runs in the ranks that train. Not a loss. Shapes: [N].
"""

import torch
from torch import Tensor

from algorithms.inputs import LossInputs
from algorithms.kl import estimate
from algorithms.ratios import policy_log_ratio
from algorithms.validation import present


def prepared(
    inputs: LossInputs, *, bypass: bool, reference_is_old: bool, entropy_gradient: bool
) -> LossInputs:
    """Detach everything but `logprobs`; write 0 where the token does not train.

    Args:
        inputs: one micro-batch.
        bypass: take the sampler's log-probs for those of the old policy.
        reference_is_old: take the log-probs of the old policy for those of the reference.
        entropy_gradient: leave the gradient on `entropy` too.
    """
    mask = inputs.loss_mask

    def clean(column: Tensor | None, *, detach: bool = True) -> Tensor | None:
        if column is None:
            return None
        return torch.where(mask, column.detach() if detach else column, 0.0)

    old = inputs.rollout_logprobs if bypass else inputs.old_logprobs
    parts = inputs.reward_parts
    return LossInputs(
        logprobs=present("logprobs", clean(inputs.logprobs, detach=False)),
        old_logprobs=present("rollout_logprobs" if bypass else "old_logprobs", clean(old)),
        advantages=present("advantages", clean(inputs.advantages)),
        loss_mask=mask,
        sequence_ids=inputs.sequence_ids,
        rollout_logprobs=clean(inputs.rollout_logprobs),
        ref_logprobs=clean(old if reference_is_old else inputs.ref_logprobs),
        epoch_logprobs=clean(inputs.epoch_logprobs),
        entropy=clean(inputs.entropy, detach=not entropy_gradient),
        old_entropy=clean(inputs.old_entropy),
        rewards=None if inputs.rewards is None else inputs.rewards.detach(),
        staleness=clean(inputs.staleness),
        truncated=inputs.truncated,
        turn_numbers=clean(inputs.turn_numbers),
        group_ids=inputs.group_ids,
        reward_parts=parts and {name: part.detach() for name, part in parts.items()},
    )


def ratio_metrics(inputs: LossInputs, *, old_is_known: bool) -> dict[str, Tensor]:
    """Compute the metrics [N] of pi / pi_old and pi_old / pi_ref that all algorithms report.

    Args:
        inputs: a prepared micro-batch.
        old_is_known: False where no part reads `old_logprobs`: the column then holds the current
            log-probs, whose ratio of 1 would measure nothing.
    """
    metrics: dict[str, Tensor] = {}
    if old_is_known:
        log_ratio = policy_log_ratio(inputs).detach()
        ratio = log_ratio.exp()
        metrics = {
            "policy/ratio": ratio,
            "policy/ratio_max": ratio,
            "policy/ratio_min": ratio,
            "policy/kl_old_k3": ratio - 1.0 - log_ratio,
        }
    if inputs.ref_logprobs is not None:
        metrics["reference/kl"] = estimate("k3", inputs.old_logprobs, inputs.ref_logprobs)
    if inputs.entropy is not None:
        metrics["policy/entropy"] = inputs.entropy.detach()
    return metrics
