"""What a person sees: a table on a terminal, one plain line per step in a pipe, a summary."""

import io
from pathlib import Path

from rich.console import Console

from conf.compose import compose
from orchestrator.telemetry.display.progress import Progress, sparkline
from orchestrator.telemetry.heldout import HeldoutAnswer, HeldoutResult
from orchestrator.telemetry.run_log import RunLog
from orchestrator.telemetry.summary import describe

METRICS = {
    "step": 1.0,
    "reward/mean": 0.25,
    "rollout/tokens": 640.0,
    "rollout/tokens_per_s": 512.0,
    "time/generate_s": 1.25,
    "time/score_s": 0.0,
    "time/train_s": 3.5,
    "time/publish_s": 0.5,
    "time/step_s": 5.3,
    "staleness/max": 0.0,
    "mismatch/abs_mean": 0.0123,
}


def shown(*, terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=140)
    with Progress(10, console=console) as progress:
        progress.print_line("starting [engines]")
        progress.step(1, METRICS)
    return console.file.getvalue()


def test_a_pipe_gets_one_plain_line_per_step():
    text = shown(terminal=False)
    assert "starting [engines]\n" in text
    (line,) = [line for line in text.splitlines() if line.startswith("step 1/10")]
    for cell in ("reward 0.250", "tokens/s 512", "train s 3.50", "stale 0", "gap 1.2e-02"):
        assert cell in line
    assert "\x1b" not in text


def test_a_terminal_gets_a_live_table():
    text = shown(terminal=True)
    for cell in ("step 1 of 10", "reward", "0.250", "publish s", "1.2e-02", "\x1b"):
        assert cell in text


def test_the_live_table_draws_the_last_steps_of_what_moves():
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    with Progress(10, console=console) as progress:
        for step, reward in enumerate((0.0, 0.5, 1.0), start=1):
            progress.step(step, {**METRICS, "reward/mean": reward})
    text = console.file.getvalue()
    assert "reward    ▁▅█" in text  # 7 x 0.5 = 3.5, rounded to the even 4
    assert "mismatch  ▁▁▁" in text
    assert "entropy" not in text  # this run measures none


def test_a_curve_with_a_value_that_is_no_number_is_drawn_all_the_same():
    assert sparkline([1.0, float("nan"), 2.0]) == "▁?█"
    assert sparkline([float("inf"), 2.0]) == "?▁"


def scores(*rewards):
    answers = tuple(
        HeldoutAnswer(
            prompt_uid=f"p{k}",
            prompt=f"2+2=4\n{k}+1=",
            response="1" if reward == 0 else str(k + 1),
            ground_truth=str(k + 1),
            reward=reward,
            outcome="scored",
        )
        for k, reward in enumerate(rewards)
    )
    return HeldoutResult(metrics={"mean": sum(rewards) / len(rewards)}, answers=answers)


def test_the_summary_names_before_after_and_every_path(tmp_path):
    _, config = compose([])
    steps = [{**METRICS, "step": k, "reward/mean": k / 10} for k in range(1, 9)]
    log = RunLog(tmp_path, config, Progress(8, console=Console(file=io.StringIO())))
    log.steps.extend(steps)
    log.heldout(0, scores(1, 0, 0, 0))
    log.heldout(8, scores(1, 1, 1, 0))
    text = describe(
        config, log, Path("/runs/quickstart"), Path("/runs/final"), Path("/runs/report.html")
    )
    assert "0.100 in step 1 -> 0.600 over the last 5 steps" in text  # (.4 + ... + .8) / 5
    assert "0.250 at step 0 -> 0.750 at step 8" in text
    assert "'1+1=': '1' -> '2', '2'" in text
    assert text.count(" -> ") == 6  # reward, score, heading, three answers
    for path in ("checkpoints", "final", "metrics.jsonl", "rollouts", "report.html"):
        assert path in text
    assert "next: ballast train" in text
