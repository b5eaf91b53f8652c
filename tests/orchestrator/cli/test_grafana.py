"""The Grafana dashboard: Grafana's own schema, the report's panels, the glossary's names."""

import json
import re

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from orchestrator.cli.grafana import dashboard, query
from orchestrator.cli.parser import main
from orchestrator.report.curves import PANELS
from orchestrator.telemetry.gauges import RAYS_PREFIX, gauge_name
from orchestrator.telemetry.glossary import GLOSSARY


def lost(given, read, path=""):
    """Places at which a JSON value lacks what was given, or has another value."""
    if isinstance(given, dict):
        gone = [f"{path}/{key}" for key in given if key not in read]
        return gone + [
            place
            for key, value in given.items()
            if key in read
            for place in lost(value, read[key], f"{path}/{key}")
        ]
    if isinstance(given, list) and len(given) == len(read):
        return [
            place
            for number, (one, other) in enumerate(zip(given, read, strict=True))
            for place in lost(one, other, f"{path}[{number}]")
        ]
    return [] if given == read else [path]


def test_grafanas_own_model_reads_all_of_it_back():
    built = dashboard()
    assert lost(built, json.loads(JSONEncoder().encode(Dashboard.from_json(built)))) == []
    wrong = {**built, "panels": [{**built["panels"][2], "gridPosition": {"x": 0}}]}
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(wrong)))
    assert lost(wrong, read) == ["/panels[0]/gridPosition"]


def test_every_panel_of_the_report_has_its_place_and_its_queries():
    panels = [panel for panel in dashboard()["panels"] if panel["type"] == "timeseries"]
    assert [panel["title"] for panel in panels] == [panel.title for panel in PANELS]
    assert [len(panel["targets"]) for panel in panels] == [len(p.metrics) for p in PANELS]
    cells = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        own = {(x + at["x"], y + at["y"]) for x in range(at["w"]) for y in range(at["h"])}
        assert max(x for x, _ in own) < 24
        assert not cells & own, panel["title"]
        cells |= own


def test_alerts_stand_at_the_top_and_are_red_from_the_first_on():
    panel = dashboard()["panels"][0]
    assert (panel["type"], panel["title"], panel["gridPos"]["y"]) == ("stat", "Alerts", 0)
    assert panel["targets"][0]["expr"] == 'ray_ballast_alerts_showing{run=~"$run"}'
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [(step["color"], step["value"]) for step in steps] == [("green", 0), ("red", 1)]


def test_a_query_finds_the_gauges_that_a_run_sets_and_no_others():
    (mean,) = [metric for metric in GLOSSARY if metric.name == "reward/mean"]
    assert query(mean) == 'ray_ballast_reward_mean{run=~"$run"}'
    (part,) = [metric for metric in GLOSSARY if metric.name == "reward/part/<name>"]
    pattern = re.search('__name__=~"([^"]+)"', query(part)).group(1)
    assert re.fullmatch(pattern, RAYS_PREFIX + gauge_name("reward/part/exact"))
    assert not re.fullmatch(pattern, RAYS_PREFIX + gauge_name("reward/mean"))


def test_the_command_prints_it(capsys):
    assert main(["metrics", "--grafana"]) == 0
    assert json.loads(capsys.readouterr().out) == dashboard()
