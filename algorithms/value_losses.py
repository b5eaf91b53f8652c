"""Regression loss of the critic.

Squared error with PPO's value clipping. Runs in the critic's ranks. Not GAE, which makes the
targets. Shapes: [N].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.inputs import LossInputs
from algorithms.parts import ValueLoss
from algorithms.ratios import as_float
from algorithms.validation import check_positive, present


@dataclass(frozen=True, kw_only=True)
class ClippedValue(ValueLoss):
    """Squared error of the values, with PPO's value clipping.

    L = 0.5 max((V - ret)^2, (clip(V; V_old - clip, V_old + clip) - ret)^2).

    Attributes:
        clip: half-width; 0.5 verl, 0.2 OpenRLHF, `inf` for the plain squared error.
    """

    clip: float = 0.5

    columns = frozenset({"values", "old_values", "returns"})

    def __post_init__(self) -> None:
        check_positive("clip", self.clip)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.ValueLoss`."""
        values = present("values", inputs.values)
        old_values = present("old_values", inputs.old_values).detach()
        returns = present("returns", inputs.returns).detach()
        near = old_values + (values - old_values).clamp(-self.clip, self.clip)
        return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """See :class:`algorithms.parts.TokenPart`."""
        values = present("values", inputs.values).detach()
        old_values = present("old_values", inputs.old_values).detach()
        returns = present("returns", inputs.returns).detach()
        return {
            "value/mean": values,
            "value/error": (values - returns).abs(),
            "value/clip_frac": as_float((values - old_values).abs() > self.clip, values),
        }
