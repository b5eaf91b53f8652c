"""Gates: the choice of tokens that pass a gradient, over any policy loss.

Holds ERC and DPPO. Runs in the learner's ranks. Not the clip inside a loss; both must pass. A token
that a gate stops keeps its loss value and its place in the denominator. Shapes: [N].
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from algorithms.inputs import LossInputs
from algorithms.parts import Gate
from algorithms.ratios import as_float
from algorithms.validation import check_at_least, check_positive, present


@dataclass(frozen=True, kw_only=True)
class EntropyRatioClip(Gate):
    """Gate by the ratio of entropies. ERC (2512.05591).

    Keeps a token where 1-low < rho < 1+high, rho = (H(pi) + eps) / (H(pi_old) + eps).

    H is the full-vocabulary entropy at the token's position and the sampling temperature, in
    float32, both from the trainer. Strict comparisons; no gradient through rho. At the first
    optimizer step of a rollout rho = 1 and nothing is stopped.

    Attributes:
        low, high: distances from 1; 0.05 in the released scripts (the code's default, 0.2, is not
            what the scripts run). `low=1` together with `high=inf` keeps every token.
        eps: keeps rho finite where the old policy is deterministic.
    """

    low: float = 0.05
    high: float = 0.05
    eps: float = 1e-8

    columns = frozenset({"entropy", "old_entropy"})

    def __post_init__(self) -> None:
        check_at_least("low", self.low, 0.0)
        check_at_least("high", self.high, 0.0)
        check_positive("eps", self.eps)

    def _ratio(self, inputs: LossInputs) -> Tensor:
        """Compute the ratio rho [N], detached."""
        entropy = present("entropy", inputs.entropy).detach()
        old_entropy = present("old_entropy", inputs.old_entropy).detach()
        return (entropy + self.eps) / (old_entropy + self.eps)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.Gate`."""
        ratio = self._ratio(inputs)
        return (ratio > 1.0 - self.low) & (ratio < 1.0 + self.high)

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """See :class:`algorithms.parts.TokenPart`."""
        ratio = self._ratio(inputs)
        return {
            "erc/mask_frac": as_float(~self(inputs), ratio),
            "erc/mask_low_frac": as_float(ratio <= 1.0 - self.low, ratio),
            "erc/mask_high_frac": as_float(ratio >= 1.0 + self.high, ratio),
            "erc/entropy_ratio": ratio,
        }


@dataclass(frozen=True, kw_only=True)
class ProbabilityClip(Gate):
    """Gate by the difference of probabilities, on one side. DPPO, binary TV (2602.04879).

    Stops a token where A > 0 and pi - pi_old > high, or A <= 0 and pi - pi_old < -low.

    The trust region of the present default of prime-rl, where pi_old is the sampler mu (here:
    `bypass=true`). A ratio treats a token of probability 1e-4 like one of 0.5; the difference does
    not. Deviation: prime-rl sets the loss of a stopped token to 0, a gate keeps its value; the
    gradients are equal.

    Attributes:
        low, high: largest fall and rise of a token's probability; 0.2 each.
    """

    low: float = 0.2
    high: float = 0.2

    columns = frozenset({"old_logprobs"})

    def __post_init__(self) -> None:
        check_at_least("low", self.low, 0.0)
        check_at_least("high", self.high, 0.0)

    def _outside(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Mark the tokens stopped above and those stopped below, both [N] bool."""
        moved = inputs.logprobs.detach().exp() - inputs.old_logprobs.exp()
        rises = inputs.advantages > 0
        return rises & (moved > self.high), ~rises & (moved < -self.low)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """See :class:`algorithms.parts.Gate`."""
        above, below = self._outside(inputs)
        return ~(above | below)

    def metrics(self, inputs: LossInputs) -> Mapping[str, Tensor]:
        """See :class:`algorithms.parts.TokenPart`."""
        above, below = self._outside(inputs)
        return {
            "dppo/mask_frac": as_float(above | below, inputs.old_logprobs),
            "dppo/mask_high_frac": as_float(above, inputs.old_logprobs),
            "dppo/mask_low_frac": as_float(below, inputs.old_logprobs),
        }
