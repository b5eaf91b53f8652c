"""Measure a run in the driver: time by role, metrics, traces, progress, trackers."""
