"""Environments: how a prompt becomes one or several turns of a trajectory."""
