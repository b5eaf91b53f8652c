"""Mark the tokens whose gradient an update cut: by the loss's clip, a gate, or the correction.

Runs in the ranks that train, as the last act of a token loss; the marks change nothing and are
recorded with the token. A reader of a record needs the bits alone, so nothing here loads torch.
Shapes: [N].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CLIPPED, GATED, DROPPED = 1, 2, 4  # bits of a token's flags
#: Metrics of a policy loss that are not 0 where its clip acts.
CLIP_METRICS = ("policy/clip_frac", "policy/clip_dual_frac")


def token_flags(
    metrics: Mapping[str, Tensor], *, loss_mask: Tensor, kept: Tensor, factor: Tensor
) -> Tensor:
    """Return the flags [N] uint8 of a micro-batch; 0 where a token does not train.

    Worked example: of four tokens the second is clipped and stopped by a gate, the third dropped by
    the correction; the last does not train:
        policy/clip_frac [0.0 1.0 0.0 1.0]    kept   [T F T F]    loss_mask [T T T F]
                                              factor [1.0 1.0 0.0 1.0]
        flags            [0 3 4 0]

    Args:
        metrics: of the algorithm, [N] each.
        loss_mask: [N] bool.
        kept: [N] bool, True where every gate lets the gradient pass.
        factor: [N] of the correction, 0 where the token is dropped.
    """
    flags = (~kept).byte() * GATED | (factor == 0).byte() * DROPPED
    for name in CLIP_METRICS:
        if name in metrics:
            flags = flags | (metrics[name] != 0).byte() * CLIPPED
    return flags * loss_mask.byte()
