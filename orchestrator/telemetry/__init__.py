"""Measure a run: time by role, metrics, traces, progress, trackers."""
