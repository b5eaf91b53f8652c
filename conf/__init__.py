"""Hydra configuration: YAML groups and their typed schema, importable as `pkg://conf`."""
