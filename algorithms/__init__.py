"""The algorithms of Ballast: pure functions from log-probs, rewards and masks to per-token losses.

What it is: losses, advantages, gates, corrections and aggregations as small frozen dataclasses that
compose into one :class:`algorithms.algorithm.Algorithm`. Standard library and torch only.
What it is not: it launches nothing, reads no configuration and divides by no local batch size.
Data flows `RewardInputs -> CreditInputs -> Credit -> LossInputs -> TokenLoss`.
"""
