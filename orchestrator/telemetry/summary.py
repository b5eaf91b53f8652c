"""Compose the last page of a run: results, paths, and the command to try next.

The driver prints the page at the end of a run. Only means are computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conf.schema import TrainConfig
from orchestrator.telemetry import bubbles
from orchestrator.telemetry.counting import counted
from orchestrator.telemetry.heldout import HeldoutResult
from orchestrator.telemetry.run_log import RunLog
from orchestrator.telemetry.trace_file import FILE_NAME

INSPECT = "ballast data inspect with the same overrides, which scores every ground truth"


def describe(
    config: TrainConfig,
    log: RunLog,
    run_dir: Path,
    export: Path | None,
    report: Path | None,
    stuck: str | None = None,
) -> str:
    """Return rewards, held-out scores, sample answers and paths, as text.

    Args:
        config: of the run.
        log: of the run.
        run_dir: its folder.
        export: the final model's folder, if there is one.
        report: the report's file, if there is one.
        stuck: the verdict on a run that had nothing to learn from, or None.
    """
    steps, first_heldout, last_heldout = log.steps, log.first_heldout, log.last_heldout
    lines = ["", f"run {run_dir.name} finished"]
    if steps:
        last = steps[-5:]
        end = sum(step["reward/mean"] for step in last) / len(last)
        seconds = sum(step["time/step_s"] for step in steps)
        lines += [
            f"  reward          {steps[0]['reward/mean']:.3f} in step {steps[0]['step']:.0f}"
            f" -> {end:.3f} over the last {counted(len(last), 'step')}",
            f"  time            {seconds:.0f} s in {counted(len(steps), 'step')},"
            f" {sum(s['rollout/tokens'] for s in steps):.0f} tokens sampled",
            *_bubbles(config, steps),
        ]
    if stuck is not None:
        lines.append(f"  learning        {stuck}")
    if first_heldout and last_heldout and first_heldout[0] < last_heldout[0]:
        (first, before), (final, after) = first_heldout, last_heldout
        for name in (n for n in after.metrics if n == "mean" or n.endswith("/mean")):
            label = "held-out score" if name == "mean" else name.removesuffix("/mean")
            lines.append(
                f"  {label:<14}  {before.metrics[name]:.3f} at step {first}"
                f" -> {after.metrics[name]:.3f} at step {final}"
            )
        lines += _answers(before, after)
    lines += [
        f"  checkpoints     {run_dir / 'checkpoints'}",
        *([f"  final model     {export}"] if export is not None else []),
        f"  metrics         {run_dir / 'metrics.jsonl'}",
        *([f"  rollouts        {run_dir / 'rollouts'}"] if config.tracking.rollouts else []),
        *([f"  trace           {run_dir / FILE_NAME}"] if config.tracking.trace else []),
        *([f"  report          {report}"] if report is not None else []),
        f"next: {_next_command(config, run_dir) if stuck is None else INSPECT}",
    ]
    return "\n".join(lines)


def _bubbles(config: TrainConfig, steps: Sequence[dict[str, float]]) -> list[str]:
    """Return the time by role, and the largest bubble with its remedy, as lines."""
    shares = bubbles.mean_shares(steps)
    if not shares:
        return []
    roles = [f"                  {line}" for line in bubbles.describe(shares)]
    return ["  time by role", *roles, f"  bubbles         {bubbles.diagnose(shares, config)}"]


def _next_command(config: TrainConfig, run_dir: Path) -> str:
    """Return the command to try after this run."""
    if not config.trainer.learns:
        return f"the same without trainer=, rollout=replay rollout.replay.folder={run_dir}"
    if config.run_name in ("quickstart", "tiny"):
        return f"ballast train experiment={config.run_name} algorithm=dapo"
    longer = f"trainer.total_steps={config.trainer.total_steps * 2}"
    optimizers = (config.learner.optimizer, config.critic.optimizer)
    if any(optimizer.schedule != "constant" for optimizer in optimizers):
        # The rate has fallen to 0 with this run, and would jump if the same run went on.
        return f"the same command with run_name={config.run_name}-longer {longer}"
    return f"the same command with resume=auto {longer}"


def _answers(before: HeldoutResult, after: HeldoutResult, count: int = 3) -> list[str]:
    """Return lines with the answers to the same prompts before and after, changed ones first."""
    old = {answer.prompt_uid: answer for answer in reversed(before.answers)}
    pairs = [(old[new.prompt_uid], new) for new in after.answers if new.prompt_uid in old]
    pairs.sort(key=lambda pair: pair[0].response == pair[1].response)
    lines = ["  sample answers  (prompt: before -> after, truth)"]
    for was, now in pairs[:count]:
        shown = now.prompt.splitlines()[-1][-60:]
        lines.append(f"    {shown!r}: {was.response!r} -> {now.response!r}, {now.ground_truth!r}")
    return lines
