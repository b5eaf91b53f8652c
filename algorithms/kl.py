"""KL estimators from the log-probs of the sampled token.

k1, k2, k3 of KL(p || q) for samples of p, all [N]. Runs in the ranks that train. Not a choice of
gradient: the same estimator has different gradients as a loss and as a reward, see
:class:`algorithms.regularizers.ReferenceKL`. Schulman, "Approximating KL divergence" (2020).
"""

import math

from torch import Tensor

from algorithms.ratios import clamped_log_ratio
from algorithms.validation import check_choice

#: Bound of a token's k3 in a penalty, verl's: r = 11 times less likely than under q, 2.6 nats.
K3_LIMIT = 10.0
ESTIMATORS = ("k1", "k2", "k3", "abs")


def check_estimator(name: str, value: str) -> None:
    """Raise ValueError on an estimator that :func:`estimate` does not know."""
    check_choice(name, value, ESTIMATORS)


def estimate(
    kind: str, logprobs: Tensor, other_logprobs: Tensor, *, k3_limit: float = math.inf
) -> Tensor:
    """Estimate KL(p || q) per token [N] from log p = `logprobs` and log q = `other_logprobs`.

    With r = q / p: k1 = -ln r, k2 = (ln r)^2 / 2, k3 = min(r - 1 - ln r, k3_limit), abs = |ln r|.
    k1 and the unbounded k3 are unbiased under samples of p; k3 is never negative.
    """
    log_r = clamped_log_ratio(other_logprobs, logprobs)  # [N]
    if kind == "k1":
        return -log_r
    if kind == "k2":
        return 0.5 * log_r.square()
    if kind == "k3":
        return (log_r.exp() - 1.0 - log_r).clamp(max=k3_limit)
    if kind == "abs":
        return log_r.abs()
    raise ValueError(f"kl estimator {kind!r} is unknown; choose one of {', '.join(ESTIMATORS)}")
