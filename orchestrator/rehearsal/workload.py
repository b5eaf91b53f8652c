"""Draw lengths and rewards of simulated responses, by the request's seed and nothing else.

So the same prompt gets the same responses under every schedule, on every number of engines and when
the prompt is sampled again, and schedules are compared on identical work. Part of the rehearsing
process; no response has a text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from conf.schema import RehearsalConfig
from workers.data.requests import GroupRequest


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Distribution of the lengths and the rewards of responses.

    The logarithm of a length is normal; a share of its variance belongs to the prompt, which all
    siblings have in common. The rate at which a prompt is solved is Beta-distributed with mean p
    and variance `solve_spread * p (1 - p)`.
    """

    settings: RehearsalConfig
    reward_parts: tuple[str, ...] = ("simulated",)  # of every reward; each is the whole reward

    def lengths(self, request: GroupRequest) -> list[int]:
        """Draw the tokens of every response, 1 to `max_tokens`; at `max_tokens` it is truncated."""
        settings, random = self.settings, np.random.default_rng([request.seed, 0])
        drawn = random.standard_normal(request.num_samples + 1)
        share = settings.sibling_share
        shift = math.sqrt(share) * drawn[0] + math.sqrt(1 - share) * drawn[1:]
        tokens = settings.response_tokens_median * np.exp(settings.response_tokens_sigma * shift)
        whole: list[int] = np.clip(tokens, 1, request.sampling.max_tokens).astype(int).tolist()
        return whole

    def rewards(self, request: GroupRequest) -> list[float]:
        """Draw 0.0 or 1.0 for every response."""
        random = np.random.default_rng([request.seed, 1])
        rate, spread = self.settings.solve_rate, self.settings.solve_spread
        if spread == 1.0:
            rate = float(random.random() < rate)
        elif spread > 0.0 and 0.0 < rate < 1.0:
            strength = 1.0 / spread - 1.0
            rate = float(random.beta(rate * strength, (1.0 - rate) * strength))
        solved: list[float] = (random.random(request.num_samples) < rate).astype(float).tolist()
        return solved
