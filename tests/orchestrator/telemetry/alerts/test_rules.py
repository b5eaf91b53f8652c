"""Alerts begin at the step where a sign shows, are told once, and leave healthy runs alone."""

import io
import json

import pytest
from rich.console import Console

from conf.compose import compose
from orchestrator.telemetry.alerts.rules import RULES, Alerts
from orchestrator.telemetry.display.progress import Progress
from orchestrator.telemetry.glossary import GLOSSARY
from orchestrator.telemetry.run_log import RunLog

HEALTHY = {
    "credit/informative_groups_frac": 0.5,
    "reward/sampled_mean": 0.25,
    "rollout/truncated_frac": 0.1,
    "policy/entropy": 2.0,
    "mismatch/abs_mean": 1e-3,
}


def told(*changes):
    """(step, begin of the line) of every alert of healthy steps with these changes."""
    alerts = Alerts()
    return [
        (step, line.split(":")[0].split(",")[0])
        for step, change in enumerate(changes, start=1)
        for line in alerts.step({**HEALTHY, **change})
    ]


def test_every_metric_of_a_rule_is_a_name_of_the_glossary():
    names = {metric.name for metric in GLOSSARY}
    assert [name for rule in RULES for name in rule.metrics if name not in names] == []


@pytest.mark.parametrize(
    "override", ["algorithm/controller=entropy_target", "algorithm/correction=tis"]
)
def test_the_remedies_are_settings_that_exist(override):
    assert any(override in rule.remedy for rule in RULES)
    compose([override])
    _, config = compose([])
    assert config.learner.optimizer.lr > 0
    assert config.rollout.sampling.max_new_tokens > 0
    assert config.rollout.samples_per_prompt > 0
    assert config.schedule.max_staleness >= 0


def test_three_steps_without_an_informative_group():
    nothing = {"credit/informative_groups_frac": 0.0}
    assert told(nothing, nothing, {}, nothing, nothing, nothing, nothing) == [
        (6, "nothing to learn")
    ]
    assert told(*[nothing | {"reward/sampled_mean": 1.0}] * 5) == []  # solved


def test_three_steps_in_which_all_is_cut_off_and_nothing_rewarded():
    cut = {"rollout/truncated_frac": 0.99, "reward/sampled_mean": 0.0}
    assert told(cut, cut, cut) == [(3, "all cut off")]
    assert told(*[{"rollout/truncated_frac": 1.0}] * 5) == []  # a task of a fixed length


def test_entropy_that_collapses_while_the_reward_falls():
    low = {"policy/entropy": 0.05}
    assert told(*[{}] * 5, *[low | {"reward/sampled_mean": 0.1}] * 5) == [(10, "entropy collapsed")]
    assert told(*[{}] * 5, *[low | {"reward/sampled_mean": 0.9}] * 5) == []  # it has learned


def test_a_mismatch_of_ten_times_the_first_one():
    # Step 6: (4 x .001 + .03) / 5 = .0068 is below 10 x .001, step 7: .063 / 5 = .0126 is not.
    assert told(*[{}] * 5, *[{"mismatch/abs_mean": 0.03}] * 5) == [(7, "mismatch rises")]
    small = [{"mismatch/abs_mean": 1e-7}] * 5 + [{"mismatch/abs_mean": 1e-4}] * 5
    assert told(*small) == []  # below what is notable


def test_an_alert_is_told_again_only_after_it_was_gone():
    nothing = {"credit/informative_groups_frac": 0.0}
    assert [step for step, _ in told(*[nothing] * 6, {}, *[nothing] * 3)] == [3, 10]


def test_a_run_without_a_learner_has_none():
    alerts = Alerts()
    assert [alerts.step({"reward/mean": 0.0}) for _ in range(5)] == [[]] * 5


def test_the_log_tells_an_alert_in_one_line(tmp_path):
    console = Console(file=io.StringIO(), width=80)
    with RunLog(tmp_path, compose([])[1], Progress(9, console=console)) as log:
        for step in (1, 2, 3, 4):
            log.step(step, {**HEALTHY, "credit/informative_groups_frac": 0.0})
    numbers = [json.loads(one) for one in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [one["alerts/showing"] for one in numbers] == [0.0, 0.0, 1.0, 1.0]
    (line,) = [one for one in console.file.getvalue().splitlines() if "alert" in one]
    assert line.startswith("alert at step 3: nothing to learn: no group of the last 3 steps")
    assert "rollout.samples_per_prompt" in line


def test_a_resumed_runs_alerts_and_sparklines_go_on_from_the_steps_that_it_has(tmp_path):
    """Two steps without an informative group before the resume and one after it are three."""
    nothing = {**HEALTHY, "time/step_s": 1.0, "credit/informative_groups_frac": 0.0}
    for steps in ((1, 2), (3, 4)):
        console = Console(file=io.StringIO(), width=80)
        progress = Progress(9, console=console)
        with RunLog(tmp_path, compose([])[1], progress) as log:
            for step in steps:
                log.step(step, {**nothing, "reward/mean": float(step)})
    told = [one for one in console.file.getvalue().splitlines() if "alert" in one]
    assert [one.split(":")[0] for one in told] == ["alert at step 3"]
    table = progress._table(4)
    assert str(table.caption).splitlines()[0] == "reward    ▁▃▆█"
