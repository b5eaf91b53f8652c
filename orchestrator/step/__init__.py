"""Compute one step on metadata: batch, partition, critic, adaptation."""
