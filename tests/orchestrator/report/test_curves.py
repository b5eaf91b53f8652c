"""The charts of a report: every name is in the glossary, and marked steps are the right ones."""

import pytest
from recorded_run import metrics

from orchestrator.report.curves import (
    MAX_POINTS,
    PANELS,
    curves,
    events,
    meaning,
    panels_of,
    verdict,
)
from orchestrator.telemetry.glossary import GLOSSARY


def test_every_metric_of_a_chart_is_a_name_of_the_glossary():
    names = {metric.name for metric in GLOSSARY}
    assert [name for panel in PANELS for name in panel.metrics if name not in names] == []


def test_every_event_reads_a_name_of_the_glossary():
    names = {metric.name for metric in GLOSSARY}
    assert {
        "rollout/engines_lost",
        "rollout/groups_resampled",
        "learner/updates",
        "learner/steps",
        "samples/failed",
    } <= names


def test_a_run_gets_the_charts_of_what_it_wrote():
    found = panels_of(["reward/mean", "reward/part/exact", "policy/kl_ref_k3", "eval/pass@4"])
    assert {panel["title"]: panel["metrics"] for panel in found} == {
        "Reward": ["reward/mean"],
        "Parts of the reward": ["reward/part/exact"],
        "Held-out score": ["eval/pass@4"],
        "KL to the old policy and to the reference": ["policy/kl_ref_k3"],
    }
    assert meaning("policy/kl_ref_k3")["unit"] == "nats"
    assert meaning("mine/own") == {"unit": "", "meaning": ""}


def test_a_value_that_a_line_lacks_is_none():
    found = curves([{"step": 1, "a": 0.5}, {"step": 2, "a": float("nan"), "b": 1.0}])
    assert found == {"steps": [1, 2], "left_out": 0, "values": {"a": [0.5, None], "b": [None, 1]}}


def test_a_long_run_is_thinned_with_both_ends():
    found = curves([{"step": step, "a": 1.0} for step in range(1, 10_001)])
    assert (len(found["steps"]), found["left_out"]) == (MAX_POINTS, 8_000)
    assert (found["steps"][0], found["steps"][-1]) == (1, 10_000)


def test_losses_skips_failures_and_resumes_are_marked_at_their_steps():
    lines = [{"step": step, **metrics(step)} for step in (1, 2, 3, 4)]
    lines[1]["samples/failed"] = 3.0
    assert [(event["step"], event["kind"]) for event in events(lines, [2])] == [
        (2, "failed"),
        (3, "resumed"),
        (3, "lost"),
        (4, "skipped"),
    ]
    texts = {event["text"] for event in events(lines, [2])}
    assert texts == {
        "3 samples without a score",
        "resumed after step 2",
        "1 engine lost",
        "1 update skipped: the gradient was not finite",
    }


def test_alerts_of_the_log_are_marked_too():
    values = {"credit/informative_groups_frac": 0.0, "reward/sampled_mean": 0.0}
    (event,) = events([{"step": step, **values} for step in (1, 2, 3, 4)], [])
    assert (event["step"], event["kind"]) == (3, "alert")
    assert event["text"].startswith("nothing to learn")


def test_a_count_that_a_new_job_begins_again_is_no_negative_loss():
    lines = [{"step": k, "rollout/engines_lost": v} for k, v in ((1, 2.0), (2, 0.0), (3, 1.0))]
    assert [(e["step"], e["text"]) for e in events(lines, [])] == [
        (1, "2 engines lost"),
        (3, "1 engine lost"),
    ]


def test_the_verdict_is_that_of_the_last_page():
    lines = [{"step": k, "reward/mean": k / 10, "time/step_s": 2.0} for k in range(1, 9)]
    found = verdict(lines, [{"eval/mean": 0.25}, {"eval/mean": 0.75}])
    assert (found["reward_first"], found["reward_last"]) == (0.1, 0.6)  # (.4 + ... + .8) / 5
    assert (found["heldout_first"], found["heldout_last"]) == (0.25, 0.75)
    assert found["seconds"] == 16
    assert verdict([], []) == {}
    assert "heldout_first" not in verdict(lines, [{"eval/mean": 0.25}])
    assert found["steps"] == pytest.approx(8)
