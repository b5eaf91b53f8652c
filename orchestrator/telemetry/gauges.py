"""Show a run's metrics to Prometheus, as gauges among Ray's own metrics.

Every node of a Ray cluster offers its metrics on a port; Ray sends there what the driver sets here.
The names are those of the glossary. Runs in the driver, and computes no metric.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ray.util.metrics import Gauge

PREFIX = "ballast_"
RAYS_PREFIX = "ray_"  # Ray puts it before every name


def gauge_name(metric: str) -> str:
    """Return the name of a metric among those of Ray: "reward/mean" is "ballast_reward_mean"."""
    return PREFIX + re.sub(r"[^a-zA-Z0-9]", "_", metric)


class Gauges:
    """Gauges of one run, each with the run's name as its label `run`.

    Args:
        run_name: of the run.
    """

    def __init__(self, run_name: str) -> None:
        self._labels = {"run": run_name}
        self._gauges: dict[str, Gauge] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Set the gauge of every metric, and `ballast_step`. To be called while Ray runs."""
        for name, value in {"step": step, **metrics}.items():
            gauge = self._gauges.get(name)
            if gauge is None:
                gauge = self._gauges[name] = Gauge(gauge_name(name), name, tag_keys=("run",))
            gauge.set(float(value), tags=self._labels)
