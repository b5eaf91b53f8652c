"""Compute one step on metadata, in the driver: batch, partition, critic, adaptation."""
