"""Hydra configuration: YAML groups and their typed schema, importable as `pkg://conf`.

Composed and checked in the driver, and in every command that reads a configuration. Starts nothing.
"""
