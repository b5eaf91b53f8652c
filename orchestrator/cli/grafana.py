"""Build a Grafana dashboard of runs that Prometheus scrapes: `ballast metrics --grafana`.

The panels are those of the report, the names and units those of the glossary, so that no name can
be forgotten in one of them. Runs in the process of the command; nothing is sent anywhere.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from orchestrator.report.curves import PANELS, Panel
from orchestrator.telemetry.gauges import RAYS_PREFIX, gauge_name
from orchestrator.telemetry.glossary import GLOSSARY, Metric

UNITS = {"s": "s", "bytes": "bytes", "share": "percentunit"}  # of Grafana; others have none
WIDTH, HEIGHT, PER_ROW = 8, 8, 3  # of a panel, on Grafana's grid of 24 columns
ALERTS_HEIGHT = 3
SOURCE = {"type": "prometheus", "uid": "${source}"}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON model, with the source and the runs to choose."""
    panels = [_alerts_panel()]
    top = ALERTS_HEIGHT
    for section, members in groupby(PANELS, key=lambda panel: panel.section):
        panels.append(_row(len(panels) + 1, section, top))
        top += 1
        chosen = list(members)
        for place, panel in enumerate(chosen):
            row, column = divmod(place, PER_ROW)
            at = {"x": column * WIDTH, "y": top + row * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append(_panel(len(panels) + 1, panel, at))
        top += HEIGHT * -(-len(chosen) // PER_ROW)
    return {
        "title": "Ballast runs",
        "uid": "ballast-runs",
        "tags": ["ballast"],
        "timezone": "browser",
        "editable": True,
        "refresh": "10s",
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_source_variable(), _run_variable()]},
        "panels": panels,
    }


def _row(number: int, title: str, top: int) -> dict[str, Any]:
    at = {"x": 0, "y": top, "w": 24, "h": 1}
    return {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": at,
        "panels": [],
    }


def _alerts_panel() -> dict[str, Any]:
    """Return the number of alerts that show, red from the first on."""
    panel = Panel(title="Alerts", metrics=("alerts/showing",), section="")
    built = _panel(1, panel, {"x": 0, "y": 0, "w": 24, "h": ALERTS_HEIGHT})
    steps = [{"color": "green", "value": 0}, {"color": "red", "value": 1}]
    built["fieldConfig"]["defaults"]["thresholds"] = {"mode": "absolute", "steps": steps}
    return built | {"type": "stat"}


def _panel(number: int, panel: Panel, at: dict[str, int]) -> dict[str, Any]:
    metrics = [_metric(name) for name in panel.metrics]
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": "\n".join(f"{metric.name}: {metric.meaning}" for metric in metrics),
        "datasource": SOURCE,
        "gridPos": at,
        "fieldConfig": {
            "defaults": {"unit": UNITS.get(metrics[0].unit, "none")},
            "overrides": [],
        },
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": SOURCE,
                "expr": query(metric),
                "legendFormat": "{{run}} " + metric.name,
            }
            for place, metric in enumerate(metrics)
        ],
    }


def _metric(name: str) -> Metric:
    return next(metric for metric in GLOSSARY if metric.name == name)


def query(metric: Metric) -> str:
    """Return the PromQL of a metric of the chosen runs; of a family, of all its members."""
    fixed = re.split(r"<\w+>", metric.name)
    if len(fixed) == 1:
        return f'{RAYS_PREFIX}{gauge_name(metric.name)}{{run=~"$run"}}'
    # A name in angle brackets stands for any text; the gauge's name has no special character.
    marked = gauge_name("X0X".join(fixed)).replace("X0X", ".+")
    return f'{{__name__=~"{RAYS_PREFIX}{marked}", run=~"$run"}}'


def _source_variable() -> dict[str, Any]:
    return {"name": "source", "label": "source", "type": "datasource", "query": "prometheus"}


def _run_variable() -> dict[str, Any]:
    return {
        "name": "run",
        "label": "run",
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values({RAYS_PREFIX}{gauge_name('step')}, run)",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
    }
