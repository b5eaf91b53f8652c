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
    rollouts: bool = True  # every step's trajectories as Parquet
    trace: bool = True  # what every worker did, for Perfetto
    report: bool = True  # one HTML file about the run, at its end
