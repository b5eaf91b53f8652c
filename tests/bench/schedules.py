"""Asynchronous against synchronous training: samples until the quickstart's reward is reached.

    python tests/bench/schedules.py [--steps 30] [--goal 0.9] [--seeds 0 1] [--write]

What it is: the quickstart (SmolLM2-135M, addition) once per seed with `schedule=sync` and once with
`schedule=async` for every bound on the staleness, truncated importance sampling on in all of them.
What it is not: a speed test; on one machine of two cores engines and learner share what there is.

Counted are the samples that were drawn, those of groups dropped for their staleness too, until the
mean reward over three steps reaches the goal. It exits non-zero if an asynchronous schedule needs
more than 1.3 times what the synchronous one does. `--write` puts the table into
orchestrator/README.md between its markers.
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from runs import ROOT, train

README = ROOT / "orchestrator" / "README.md"
BEGIN, END = "<!-- schedules: begin -->", "<!-- schedules: end -->"
BOUNDS = (1, 2, 4)
WINDOW = 3  # steps over which the reward is averaged
ALLOWED = 1.3
SAMPLES_PER_PROMPT = 8
HEADER = (
    "| schedule | samples to goal, by seed | of sync | final reward | held-out, greedy "
    "| staleness mean | max | groups dropped |\n|---|---|---|---|---|---|---|---|\n"
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run."""

    samples_to_goal: int | None
    final: float  # mean reward of the last steps
    held_out: float
    staleness_mean: float
    staleness_max: float
    dropped: int  # groups


def measure(name: str, overrides: list[str], goal: float) -> Outcome:
    """Trains once."""
    with tempfile.TemporaryDirectory() as folder:
        rows = train(name, Path(folder), "algorithm/correction=tis", *overrides)
    steps = [row for row in rows if "time/step_s" in row]
    rewards = [row["reward/sampled_mean"] for row in steps]
    drawn, samples_to_goal = 0, None
    for number, row in enumerate(steps, start=1):
        drawn += int(row["groups/trained"] + row["groups/dropped"]) * SAMPLES_PER_PROMPT
        reached = number >= WINDOW and statistics.fmean(rewards[number - WINDOW : number]) >= goal
        if reached and samples_to_goal is None:
            samples_to_goal = drawn
    return Outcome(
        samples_to_goal=samples_to_goal,
        final=statistics.fmean(rewards[-WINDOW:]),
        held_out=[row["eval/mean"] for row in rows if "eval/mean" in row][-1],
        staleness_mean=statistics.fmean(row["staleness/mean"] for row in steps),
        staleness_max=max(row["staleness/max"] for row in steps),
        dropped=int(sum(row["groups/dropped"] for row in steps)),
    )


def mean_samples(outcomes: list[Outcome]) -> float | None:
    """Over the seeds; None where one of them did not reach the goal."""
    reached = [outcome.samples_to_goal for outcome in outcomes]
    found = [samples for samples in reached if samples is not None]
    return statistics.fmean(found) if len(found) == len(reached) else None


def describe(label: str, outcomes: list[Outcome], ratio: float | None) -> str:
    """A row of the table, means over the seeds."""
    reached = ", ".join(str(outcome.samples_to_goal or "-") for outcome in outcomes)

    def mean(field: str) -> float:
        return statistics.fmean(getattr(outcome, field) for outcome in outcomes)

    return (
        f"| {label} | {reached} | {'-' if ratio is None else f'{ratio:.2f}'} | {mean('final'):.3f} "
        f"| {mean('held_out'):.3f} | {mean('staleness_mean'):.2f} "
        f"| {max(outcome.staleness_max for outcome in outcomes):.0f} | {mean('dropped'):.0f} |"
    )


def main() -> int:
    """Runs them one after the other; the exit code tells whether every ratio is allowed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--goal", type=float, default=0.9)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--write", action="store_true", help="into orchestrator/README.md")
    options = parser.parse_args()
    schedules = {"`sync`": ["schedule=sync"]} | {
        f"`async`, `max_staleness={k}`": ["schedule=async", f"schedule.max_staleness={k}"]
        for k in BOUNDS
    }
    common = [
        f"trainer.total_steps={options.steps}",
        f"rollout.samples_per_prompt={SAMPLES_PER_PROMPT}",
    ]
    rows: list[str] = []
    baseline: float | None = None
    failures = 0
    print(HEADER, end="", flush=True)
    for label, overrides in schedules.items():
        outcomes = [
            measure("schedules", [*common, *overrides, f"seed={seed}"], options.goal)
            for seed in options.seeds
        ]
        samples = mean_samples(outcomes)
        baseline = baseline or samples
        ratio = samples / baseline if samples and baseline else None
        failures += ratio is None or ratio > ALLOWED
        rows.append(describe(label, outcomes, ratio))
        print(rows[-1], flush=True)
    if options.write:
        before, rest = README.read_text().split(BEGIN)
        after = rest.split(END)[1]
        body = "\n".join(rows)
        README.write_text(f"{before}{BEGIN}\n{HEADER}{body}\n{END}{after}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
