"""Every shipped algorithm learns `experiment=tiny` on the real stack: final reward and steps.

    python tests/bench/learning.py [ALGORITHM ...] [--steps 150] [--updates 2] [--write]

What it is: one run of the console command per member of `conf/algorithm`, a random 0.4 M model
that learns to copy five digits with vLLM, DeepSpeed and attested publication. Two updates share a
rollout batch, so that ratios leave 1 and every clip, gate and drift acts. What it is not: a
ranking; it is one seed, one task, and the experiment's learning rate for every algorithm.

It prints a table as runs end and exits non-zero if one does not reach the goal. `--write` puts the
table into algorithms/README.md between its markers; rows of algorithms that were not run stay.
"""

import argparse
import re
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from runs import ROOT, train

README = ROOT / "algorithms" / "README.md"
BEGIN, END = "<!-- learning: begin -->", "<!-- learning: end -->"
GOAL = 0.9
LAST = 5  # steps whose mean reward is the final one
# Where the experiment's entropy bonus of 0.05 does not suit the loss. Advantages that no standard
# deviation divides are as small as the first rewards' differences, so it would outweigh them. The
# likelihood of correct responses and dynamic sampling sharpen the policy, so it would be sure of
# itself before it can copy all five digits.
ENTROPY = {
    **dict.fromkeys(("dr_grpo", "gpg", "rloo", "rpg", "rpg_differentiable"), 0.005),
    "reinforce": 0.02,
    **dict.fromkeys(("dapo", "gppo"), 0.1),
}
ONCE = ("reinforce",)  # no ratio: one update per rollout batch
HEADER = (
    "| algorithm | updates a step | entropy bonus | first reward | final reward "
    f"| steps to {GOAL:g} | held-out, greedy |\n|---|---|---|---|---|---|---|\n"
)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """One run.

    Attributes:
        name: of the algorithm.
        updates: of a step.
        entropy: coefficient of the bonus.
        rewards: mean reward of all samples of every step, of filtered groups too.
        held_out: greedy score on prompts that were not trained on, at the end.
    """

    name: str
    updates: int
    entropy: float
    rewards: tuple[float, ...]
    held_out: float

    @property
    def final(self) -> float:
        """Mean reward of the last steps."""
        return statistics.fmean(self.rewards[-LAST:])

    @property
    def steps_to_goal(self) -> int | None:
        """The first step from which the mean over `LAST` steps reaches the goal."""
        for step in range(LAST, len(self.rewards) + 1):
            if statistics.fmean(self.rewards[step - LAST : step]) >= GOAL:
                return step
        return None

    @property
    def row(self) -> str:
        """Of the table."""
        reached = "not reached" if self.steps_to_goal is None else str(self.steps_to_goal)
        return (
            f"| `{self.name}` | {self.updates} | {self.entropy:g} | {self.rewards[0]:.3f} "
            f"| {self.final:.3f} | {reached} | {self.held_out:.3f} |"
        )


def learn(name: str, options: argparse.Namespace, folder: Path) -> Learned:
    """Trains once.

    Raises:
        RuntimeError: the run failed; the message ends with what it said last.
    """
    updates = 1 if name in ONCE else options.updates
    entropy = ENTROPY.get(name, 0.05)
    logged = train(
        name,
        folder,
        "experiment=tiny",
        f"algorithm={name}",
        f"algorithm.regularizers.entropy.coefficient={entropy}",
        f"trainer.total_steps={options.steps}",
        f"trainer.updates_per_step={updates}",
        f"seed={options.seed}",
        "schedule.max_refill_rounds=4",  # near the end dynamic sampling rejects nearly every group
        *(f"cluster.{role}.threads=1" for role in ("rollout", "learner", "reference", "critic")),
    )
    rewards = tuple(row["reward/sampled_mean"] for row in logged if "time/step_s" in row)
    held_out = [row["eval/mean"] for row in logged if "eval/mean" in row]
    return Learned(
        name=name, updates=updates, entropy=entropy, rewards=rewards, held_out=held_out[-1]
    )


def write_table(rows: dict[str, str]) -> None:
    """Puts rows into the README's table, in order of name."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    table, after = rest.split(END)
    kept = {match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` \|.*$", table, re.MULTILINE)}
    body = "\n".join(row for _, row in sorted({**kept, **rows}.items()))
    README.write_text(f"{before}{BEGIN}\n{HEADER}{body}\n{END}{after}")


def parse() -> argparse.Namespace:
    """The command line, checked."""
    shipped = sorted(path.stem for path in (ROOT / "conf" / "algorithm").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("algorithms", nargs="*", metavar="ALGORITHM", help="all, if none is named")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--updates", type=int, default=2, help="optimizer updates of a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="into algorithms/README.md")
    options = parser.parse_args()
    unknown = sorted(set(options.algorithms) - set(shipped))
    if unknown:
        parser.error(f"no {', '.join(unknown)} in conf/algorithm: {', '.join(shipped)}")
    options.algorithms = options.algorithms or shipped
    return options


def main() -> int:
    """Runs them one after the other; the exit code tells whether all learned."""
    options = parse()
    rows: dict[str, str] = {}
    failures = 0
    print(HEADER, end="", flush=True)
    for name in options.algorithms:
        with tempfile.TemporaryDirectory() as folder:
            try:
                learned = learn(name, options, Path(folder))
            except RuntimeError as error:
                print(error, flush=True)
                failures += 1
                continue
        rows[name] = learned.row
        failures += learned.steps_to_goal is None
        print(learned.row, flush=True)
    if options.write:
        write_table(rows)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
