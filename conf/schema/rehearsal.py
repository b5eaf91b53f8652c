"""Assumptions of `ballast rehearse` about engines, learner and prompts that are not there.

Read by the driver. Measures nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from conf.schema.checks import require


@dataclass(kw_only=True)
class RehearsalConfig:
    """Lengths, speeds and rewards of a simulated run.

    Lengths are log-normal and end at `rollout.sampling.max_new_tokens`. Speeds are those of one
    engine and of one learner rank.
    """

    num_prompts: int = 8192  # of an epoch
    prompt_tokens: int = 512  # of each; data.max_prompt_tokens if that is less
    response_tokens_median: float = 2048.0
    response_tokens_sigma: float = 1.2  # of the logarithm; 0: all are equally long
    sibling_share: float = 0.3  # of that variance, between prompts: siblings are alike
    solve_rate: float = 0.5  # rewards of one among all samples
    solve_spread: float = 0.5  # 0: every prompt has that rate; 1: each is always or never solved
    decode_step_s: float = 0.008  # of an engine's step, whatever it decodes
    decode_sequence_s: float = 3e-5  # more for every running sequence
    decode_kv_token_s: float = 2.3e-8  # more for every token that a running sequence looks back at
    prefill_tokens_per_s: float = 40000.0
    reward_s: float = 0.5  # from a sample's last token to its reward
    score_tokens_per_s: float = 30000.0  # forward only, at length 0
    train_tokens_per_s: float = 10000.0  # forward and backward, at length 0
    update_s: float = 1.0  # of an optimizer update, whatever it trains
    credit_tokens_per_s: float = 2e7  # of all samples together, on one rank
    publish_s: float = 5.0  # from the learner's last update to its next step
    pause_s: float = 2.0  # of that, how long engines decode nothing

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        for name, value in vars(self).items():
            require(value >= 0, f"rehearsal.{name}", value, "must not be negative")
        for name in (
            "num_prompts",
            "prompt_tokens",
            "response_tokens_median",
            "decode_step_s",
            "prefill_tokens_per_s",
            "score_tokens_per_s",
            "train_tokens_per_s",
            "credit_tokens_per_s",
        ):
            value = getattr(self, name)
            require(value > 0, f"rehearsal.{name}", value, "must be positive")
        for name in ("sibling_share", "solve_rate", "solve_spread"):
            require(getattr(self, name) <= 1, f"rehearsal.{name}", getattr(self, name), "at most 1")
        require(
            self.pause_s <= self.publish_s,
            "rehearsal.pause_s",
            self.pause_s,
            f"is part of rehearsal.publish_s={self.publish_s:g}; lower it",
        )
