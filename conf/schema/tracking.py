"""Destinations of metrics, rollouts and the trace.

Read by the driver. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.schema.checks import require

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "swanlab")


@dataclass(kw_only=True)
class TrackingConfig:
    """Destinations of metrics, rollouts and the trace. `metrics.jsonl` is always written."""

    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # names of `TRACKERS`
    project: str = "ballast"  # under which trackers gather runs
    prometheus: bool = False  # among Ray's own metrics, which Prometheus scrapes
    goal: float | None = None  # a score, drawn as a line into the report
    rollouts: bool = True  # every step's trajectories as Parquet
    trace: bool = True  # what every worker did, for Perfetto
    report: bool = True  # one HTML file about the run, at its end

    def check(self) -> None:
        """Raise a ValueError that names an impossible value and the remedy."""
        known = set(self.trackers) <= set(TRACKERS)
        require(
            known and len(set(self.trackers)) == len(self.trackers),
            "tracking.trackers",
            self.trackers,
            f"must name some of {', '.join(TRACKERS)}, each once",
        )
