"""Manage the rollout engines of a run from the driver: groups, weights, recovery, scaling."""
