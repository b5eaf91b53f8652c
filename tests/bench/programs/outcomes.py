"""Measured runs of `peers.py`: kept in a file, line by line, and made into tables.

Standard library only, but for the picture. Runs and measures nothing.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path

GIB = 1 << 30
GOAL = 0.9
POINTS = 10  # of a printed curve


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run of one program on one work.

    Example: Outcome(work="a", program="TRL", round=1, threads=2, steps=3, warm_up=1, start_s=9.0,
    seconds=(20.0, 18.0, 19.0), tokens=(2351, 2340, 2298), rewards=(0.12, 0.6, 0.9),
    core_s=36.0, peak_bytes=5 << 30, load=1.7) has a median of 18.5 s and reaches a reward of 0.9
    after 66 s, 57 of them since its first step began.

    Attributes:
        work: its name.
        program: its name.
        round: counted from 1.
        threads: of mathematics.
        steps: that were asked for.
        warm_up: first steps that are not counted.
        start_s: from the start of the process to the beginning of the first step.
        seconds: of every step.
        tokens: of prompts and responses, every sample counted with its prompt, in every step.
        rewards: mean of every step's samples; empty where nothing is trained.
        core_s: seconds of a core in a step that counts, mean, of all processes together.
        peak_bytes: of the program and all that it started.
        load: of the machine, mean of a minute, when the program started.
        phases: median seconds of a step's parts, of programs that tell them.
    """

    work: str
    program: str
    round: int
    threads: int
    steps: int
    warm_up: int
    start_s: float
    seconds: tuple[float, ...]
    tokens: tuple[int, ...]
    rewards: tuple[float, ...]
    core_s: float
    peak_bytes: int
    load: float
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, int, int]:
        """What makes a measurement another one."""
        return self.work, self.program, self.round, self.threads, self.steps

    @property
    def step_s(self) -> float:
        """Median seconds of a step that counts."""
        return statistics.median(self.seconds[self.warm_up :])

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the steps that count over their seconds."""
        return sum(self.tokens[self.warm_up :]) / sum(self.seconds[self.warm_up :])

    def seconds_to(self, goal: float, *, from_start: bool) -> float | None:
        """Return the seconds until the end of the first step whose reward is at the goal.

        Args:
            goal: a reward.
            from_start: count from the start of the process, not from the first step.

        Returns:
            Seconds; None if no step reached it.
        """
        for end, reward in zip(accumulate(self.seconds), self.rewards, strict=False):
            if reward >= goal:
                return end + (self.start_s if from_start else 0.0)
        return None


def read(path: Path) -> list[Outcome]:
    """Return the outcomes of a file, none if it is missing."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        values = json.loads(line)
        lists = {name: tuple(values[name]) for name in ("seconds", "tokens", "rewards")}
        found.append(Outcome(**(values | lists)))
    return found


def append(path: Path, outcome: Outcome) -> None:
    """Add an outcome to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")


def middle(values: Sequence[float], digits: int) -> str:
    """Return the median, and in brackets the lowest and highest of several.

    Example: middle([2.0, 1.0, 4.0], 1) is "2.0 (1.0-4.0)"; middle([], 1) is "-".
    """
    if not values:
        return "-"
    text = f"{statistics.median(values):,.{digits}f}"
    spread = f" ({min(values):,.{digits}f}-{max(values):,.{digits}f})"
    return text + spread if len(values) > 1 else text


def reached(outcomes: Sequence[Outcome], *, from_start: bool) -> str:
    """Return the seconds to the goal; "in 1 of 3" where two runs did not; "-" for no trainer."""
    if not any(outcome.rewards for outcome in outcomes):
        return "-"
    found = [outcome.seconds_to(GOAL, from_start=from_start) for outcome in outcomes]
    within = [seconds for seconds in found if seconds is not None]
    return middle(within, 0) if len(within) == len(found) else f"in {len(within)} of {len(found)}"


def table(outcomes: Sequence[Outcome], programs: Iterable[str]) -> str:
    """Return a row per program of one work, medians over the rounds.

    Args:
        outcomes: of one work.
        programs: in the order of the rows; the first is what the others are compared with.
    """
    of = {name: [o for o in outcomes if o.program == name] for name in programs}
    of = {name: runs for name, runs in of.items() if runs}
    first = next(iter(of.values()))
    base = statistics.median(run.step_s for run in first)
    base_core = statistics.median(run.core_s for run in first)
    lines = [
        f"| program | rounds | s a step | x {next(iter(of))} | core s | x | tokens/s "
        f"| s to {GOAL}, from start | from step 1 | peak GiB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, runs in of.items():
        steps, cores = [run.step_s for run in runs], [run.core_s for run in runs]
        lines.append(
            f"| {name} | {len(runs)} | {middle(steps, 2)} | {statistics.median(steps) / base:.2f} "
            f"| {middle(cores, 2)} | {statistics.median(cores) / base_core:.2f} "
            f"| {middle([run.tokens_per_s for run in runs], 0)} "
            f"| {reached(runs, from_start=True)} | {reached(runs, from_start=False)} "
            f"| {middle([run.peak_bytes / GIB for run in runs], 1)} |"
        )
    return "\n".join(lines)


def curve(rewards: Sequence[float], points: int = POINTS) -> str:
    """Return a curve as at most `points` means of neighbouring steps.

    Example: curve([0.0, 0.2, 0.4, 0.6], 2) is "0.10 0.50".
    """
    size = -(-len(rewards) // points) or 1
    parts = [rewards[k : k + size] for k in range(0, len(rewards), size)]
    return " ".join(f"{statistics.fmean(part):.2f}" for part in parts)


def phases(outcomes: Sequence[Outcome]) -> str:
    """Return the parts of a step, longest first, medians over the rounds."""
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.phases)
    found = {
        name: statistics.median(o.phases[name] for o in outcomes if name in o.phases)
        for name in names
    }
    longest = sorted(found.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in longest)


def draw(outcomes: Sequence[Outcome], titles: dict[str, str], path: Path) -> None:
    """Draw rewards over seconds since the start of the process, one panel a work."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    trained = [outcome for outcome in outcomes if outcome.rewards]
    shown = [work for work in titles if any(outcome.work == work for outcome in trained)]
    figure, axes = plt.subplots(1, len(shown), figsize=(6 * len(shown), 4.5), squeeze=False)
    programs = list(dict.fromkeys(outcome.program for outcome in trained))
    for axis, work in zip(axes[0], shown, strict=True):
        for outcome in (o for o in trained if o.work == work):
            ends = [outcome.start_s + end for end in accumulate(outcome.seconds)]
            axis.plot(
                ends,
                outcome.rewards,
                color=f"C{programs.index(outcome.program)}",
                label=outcome.program if outcome.round == 1 else None,
                linewidth=1,
            )
        axis.axhline(GOAL, color="grey", linewidth=0.5)
        axis.set_title(titles[work], fontsize=8)
        axis.set_xlabel("seconds since the start of the process")
        axis.set_ylabel("reward")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
