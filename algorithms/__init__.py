"""Algorithms of Ballast: pure functions from log-probs, rewards and masks to per-token losses.

Losses, advantages, gates, corrections and aggregations are small frozen dataclasses that compose
into one :class:`algorithms.algorithm.Algorithm`. Standard library and torch only. The record is
built in the driver and shipped to the learner and the critic; shaping, filters, weights, references
and controllers run in the driver, credit in rank 0 of the learner, losses in every rank that
trains. Nothing here launches a process, reads a configuration or divides by a local batch size.
Data flows `RewardInputs -> CreditInputs -> Credit -> LossInputs -> TokenLoss`.
"""
