"""Sequence-level ratios: GSPO and GMPO.

Losses whose ratio is one number per response, written per token so that gates and corrections
compose. Runs in the learner's ranks. Bound to no aggregation, although the papers' is
:class:`algorithms.aggregations.SequenceMean`. A response lies whole in one micro-batch.
Notation: w_t = pi / pi_old, len = trainable tokens, g = d loss / d log pi. Shapes: [N].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.inputs import LossInputs
from algorithms.parts import PolicyLoss
from algorithms.policy_losses.clipped import check_clip, clip_metrics, clipped_weight
from algorithms.ratios import LOG_RATIO_LIMIT, as_float
from algorithms.segments import masked_sequence_mean
from algorithms.validation import check_positive


def _with_token_gradient(log_ratio: Tensor, inputs: LossInputs) -> Tensor:
    """Average `log_ratio` over each response [N], passing the whole gradient to each token.

    The value is mean_t; the gradient in log_ratio_t is 1 instead of 1/len, because the aggregation
    divides by len.
    """
    mean = masked_sequence_mean(log_ratio.detach(), inputs.loss_mask, inputs.sequence_ids)
    centered = mean + log_ratio - log_ratio.detach()
    return centered.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


@dataclass(frozen=True, kw_only=True)
class SequenceRatio(PolicyLoss):
    """Clipped objective with one ratio per response. GSPO (2507.18071) Eq. 5.

    s = exp(mean_t ln w_t); L_t = -min(s A, clip(s; 1-low, 1+high) A).
    g_t = -s A where PPO would pass, per token before aggregation; with SequenceMean the weight is
    1 / (B len), as in the paper. Token form: ln s_t = ln pi - sg(ln pi) + sg(mean) (GSPO-token).

    Attributes:
        clip_low, clip_high: 3e-4 and 4e-4 in the paper, two orders below token-level clips.
        dual_clip: upper bound of s for negative advantages, or None.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4
    dual_clip: float | None = None

    columns = frozenset({"old_logprobs"})

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high, self.dual_clip)

    def _ratio(self, inputs: LossInputs) -> Tensor:
        return _with_token_gradient(inputs.logprobs - inputs.old_logprobs, inputs).exp()

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.PolicyLoss`."""
        low, high = 1.0 - self.clip_low, 1.0 + self.clip_high
        weight = clipped_weight(self._ratio(inputs), inputs.advantages, low, high, self.dual_clip)
        return -weight * inputs.advantages

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """See :class:`algorithms.parts.TokenPart`."""
        low, high = 1.0 - self.clip_low, 1.0 + self.clip_high
        ratio = self._ratio(inputs).detach()
        return {
            **clip_metrics(ratio, inputs.advantages, low, high, self.dual_clip),
            "policy/sequence_ratio": ratio,
        }


@dataclass(frozen=True, kw_only=True)
class GeometricMean(PolicyLoss):
    """Objective with the geometric mean of a response's clipped ratios. GMPO (2507.20673).

    L = -A exp(mean_t c_t), c_t = ln w_t clipped pessimistically:
    c_t = min(ln w, log_clip) where A > 0, max(ln w, -log_clip) where A < 0. The gradient of token
    t is -A exp(mean c) / len inside its clip and 0 outside, while the others keep theirs. The
    advantage is the response's mean, as the paper assumes one advantage per response.

    Attributes:
        log_clip: half-width in log space; 0.4 in the paper.
    """

    log_clip: float = 0.4

    columns = frozenset({"old_logprobs"})

    def __post_init__(self) -> None:
        check_positive("log_clip", self.log_clip)

    def _clipped(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Compute (advantage of the response, clipped log-ratio), both [N]."""
        advantage = masked_sequence_mean(inputs.advantages, inputs.loss_mask, inputs.sequence_ids)
        log_ratio = inputs.logprobs - inputs.old_logprobs
        lower, upper = log_ratio.clamp(min=-self.log_clip), log_ratio.clamp(max=self.log_clip)
        return advantage, torch.where(advantage > 0, upper, lower)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.PolicyLoss`."""
        advantage, clipped = self._clipped(inputs)
        return -_with_token_gradient(clipped, inputs).exp() * advantage

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """See :class:`algorithms.parts.TokenPart`."""
        _, clipped = self._clipped(inputs)
        moved = clipped.detach() != (inputs.logprobs - inputs.old_logprobs).detach()
        return {"policy/clip_frac": as_float(moved, clipped)}
