"""Compute the figures of a rehearsal, and print tables of them.

The first step fills the engines, so figures are those of the steps after the first, if there are
any. Part of the rehearsing process; nothing is simulated here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conf.schema import TrainConfig
from orchestrator.rehearsal.run import Moment

HOUR = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """A rehearsal in numbers; fractions are of all that the role could have done.

    Attributes:
        samples_per_h: that trained, an hour of simulated time.
        step_s: mean simulated time of a step.
        rollout_idle_frac: engine seconds without a running sequence, pauses included.
        rollout_filled_frac: running sequences over `rollout.max_num_seqs`.
        learner_idle_frac: time in which the learner neither scores, trains nor publishes.
        staleness_mean: of the trained samples, in versions.
        staleness_max: of the same samples.
        groups_dropped_frac: of all groups that were taken.
        driver_frac: CPU seconds of the driver over simulated seconds.
        simulation_s: CPU seconds that the simulation itself took.
    """

    schedule: str
    num_engines: int
    num_ranks: int
    samples_per_h: float
    step_s: float
    rollout_idle_frac: float
    rollout_filled_frac: float
    learner_idle_frac: float
    staleness_mean: float
    staleness_max: float
    groups_dropped_frac: float
    driver_frac: float
    simulation_s: float


def figures(config: TrainConfig, moments: Sequence[Moment]) -> Figures:
    """Compute the figures of all steps but the first, or of the only step."""
    first = moments[0] if len(moments) > 1 else Moment(metrics={})
    last, counted = moments[-1], [moment.metrics for moment in moments[len(moments) > 1 :]]
    seconds = last.time_s - first.time_s
    engine_s = seconds * config.rollout.num_engines
    trained = sum(step["groups/trained"] for step in counted)
    dropped = sum(step["groups/dropped"] for step in counted)
    return Figures(
        schedule=config.schedule.name,
        num_engines=config.rollout.num_engines,
        num_ranks=config.learner.num_ranks,
        samples_per_h=(last.samples - first.samples) * HOUR / seconds,
        step_s=seconds / len(counted),
        rollout_idle_frac=1 - (last.sampling_s - first.sampling_s) / engine_s,
        rollout_filled_frac=(last.running_s - first.running_s)
        / (engine_s * config.rollout.max_num_seqs),
        learner_idle_frac=1 - (last.learning_s - first.learning_s) / seconds,
        staleness_mean=sum(step["staleness/mean"] for step in counted) / len(counted),
        staleness_max=max(step["staleness/max"] for step in counted),
        groups_dropped_frac=dropped / (trained + dropped),
        driver_frac=(last.driver_s - first.driver_s) / seconds,
        simulation_s=last.simulating_s,
    )


def table(rows: Sequence[Figures]) -> str:
    """Format rehearsals as a Markdown table, one line each."""
    names = [
        "schedule",
        "engines : ranks",
        "samples an hour",
        "step s",
        "rollout idle",
        "filled",
        "learner idle",
        "staleness mean, max",
        "dropped",
        "driver CPU",
    ]
    lines = [names, ["---"] + ["---:"] * (len(names) - 1), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Figures) -> list[str]:
    return [
        row.schedule,
        f"{row.num_engines} : {row.num_ranks}",
        f"{row.samples_per_h:,.0f}",
        f"{row.step_s:,.1f}",
        f"{row.rollout_idle_frac:.1%}",
        f"{row.rollout_filled_frac:.1%}",
        f"{row.learner_idle_frac:.1%}",
        f"{row.staleness_mean:.2f}, {row.staleness_max:.0f}",
        f"{row.groups_dropped_frac:.1%}",
        f"{row.driver_frac:.2%}",
    ]


def steps_table(moments: Sequence[Moment]) -> str:
    """Format the steps of one rehearsal: seconds of each phase, trained groups, staleness."""
    phases = ("generate", "score", "train", "publish", "step")
    names = ["step", *(f"{name} s" for name in phases), "groups", "dropped", "staleness mean, max"]
    lines = [names, ["---:"] * len(names)]
    for number, moment in enumerate(moments, start=1):
        step = moment.metrics
        lines.append(
            [
                str(number),
                *(f"{step[f'time/{name}_s']:,.1f}" for name in phases),
                f"{step['groups/trained']:.0f}",
                f"{step['groups/dropped']:.0f}",
                f"{step['staleness/mean']:.2f}, {step['staleness/max']:.0f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
