"""Destinations of metrics, rollouts and the trace.

Read by the driver. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class TrackingConfig:
    """Destinations of metrics, rollouts and the trace. `metrics.jsonl` is always written."""

    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = "ballast"
    prometheus: bool = False  # among Ray's own metrics, which Prometheus scrapes
    goal: float | None = None  # a score, drawn as a line into the report
    rollouts: bool = True  # every step's trajectories as Parquet
    trace: bool = True  # what every worker did, for Perfetto
    report: bool = True  # one HTML file about the run, at its end
