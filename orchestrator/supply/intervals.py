"""Compute 95 % confidence intervals over the prompts of an evaluation.

A prompt is the unit: the samples of one prompt are no independent ones. Pure arithmetic in the
driver.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959964  # 97.5 % quantile of the normal distribution
NUM_RESAMPLES = 1000
CHUNK = 2_000_000  # resampled values held at once


def wilson(share: float, num_prompts: int) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a mean over prompts of values in [0, 1].

    With one sample of a prompt the values are 0 or 1 and the interval is Wilson's; with several
    their variance is at most share * (1 - share), so that the interval is too wide, not too narrow.

    Example: wilson(0.5, 4) == (0.150, 0.850), to three digits.
    """
    squared = Z * Z / num_prompts
    centre = (share + squared / 2) / (1 + squared)
    half = (
        Z / (1 + squared) * math.sqrt(share * (1 - share) / num_prompts + squared / num_prompts / 4)
    )
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval (Efron, 1979) of the mean of one value a prompt."""
    known = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    rounds = max(1, CHUNK // len(known))
    means: list[float] = []
    while len(means) < NUM_RESAMPLES:
        count = min(rounds, NUM_RESAMPLES - len(means))
        rows = generator.integers(0, len(known), size=(count, len(known)))
        means += known[rows].mean(axis=1).tolist()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
