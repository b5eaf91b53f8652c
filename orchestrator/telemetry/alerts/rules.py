"""Look for signs that a run stopped learning, or soon will: one line at the step where one shows.

Pure functions of the steps' metrics. The driver prints the line and writes `alerts/showing`
(`run_log.py`), the report marks the step. A run is never stopped or changed for an alert. Each rule
asks for several steps in a row, and for rewards that do not rise: a policy that has solved its task
has low entropy, too.

    alert                   shows when                                                   steps
    nothing to learn        no group has rewards that differ, and they are not right         3
    all cut off             95 % of the responses are cut off, and none is rewarded          3
    entropy collapsed       below 5 % of that of the first steps, reward below 90 % of       5
                            its best
    mismatch rises          tenfold that of the first steps, and above 0.01 nats             5
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

Step = Mapping[str, Any]

REWARD = "reward/sampled_mean"
SHORT, LONG = 3, 5  # steps in a row
RIGHT = 1.0  # a reward that needs no learning
CUT_OFF = 0.95
COLLAPSED, FALLEN = 0.05, 0.9
TENFOLD, NOTABLE_NATS = 10.0, 0.01


@dataclass(kw_only=True)
class History:
    """A rule's view of the steps so far, of bounded size.

    Attributes:
        first: the first steps, at most `LONG`.
        last: the newest steps, at most `LONG`.
        best_reward: the largest mean reward of `LONG` steps in a row; minus infinity before.
    """

    first: list[Step] = field(default_factory=list)
    last: deque[Step] = field(default_factory=lambda: deque(maxlen=LONG))
    best_reward: float = -math.inf

    def take(self, step: Step) -> None:
        """Take a finished step."""
        if len(self.first) < LONG:
            self.first.append(step)
        self.last.append(step)
        if len(self.last) == LONG and step.get(REWARD) is not None:
            self.best_reward = max(self.best_reward, _mean(self.last, REWARD))

    def newest(self, count: int) -> list[Step]:
        """Return the newest steps."""
        return list(self.last)[-count:]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One sign, and the remedy that its line names.

    Attributes:
        name: in words; the begin of the line.
        remedy: the end of the line.
        shows: returns True where the newest steps show the sign.
        metrics: that the rule reads; a step without one of them shows nothing.
        steps: the fewest that show it.
    """

    name: str
    remedy: str
    shows: Callable[[History], bool]
    metrics: tuple[str, ...]
    steps: int


def _nothing_to_learn(history: History) -> bool:
    return all(
        step["credit/informative_groups_frac"] == 0 and step[REWARD] < RIGHT
        for step in history.newest(SHORT)
    )


def _all_cut_off(history: History) -> bool:
    return all(
        step["rollout/truncated_frac"] >= CUT_OFF and step[REWARD] <= 0
        for step in history.newest(SHORT)
    )


def _collapsed(history: History) -> bool:
    entropy = _mean(history.last, "policy/entropy")
    low = entropy < COLLAPSED * _mean(history.first, "policy/entropy")
    return low and _mean(history.last, REWARD) < FALLEN * history.best_reward


def _mismatch_rises(history: History) -> bool:
    now = _mean(history.last, "mismatch/abs_mean")
    return now > NOTABLE_NATS and now > TENFOLD * _mean(history.first, "mismatch/abs_mean")


def _mean(steps: Collection[Step], name: str) -> float:
    return sum(float(step[name]) for step in steps) / len(steps)


RULES = (
    Rule(
        name="nothing to learn: no group of the last 3 steps has rewards that differ",
        remedy="raise rollout.samples_per_prompt, or take prompts that the policy sometimes solves",
        shows=_nothing_to_learn,
        metrics=("credit/informative_groups_frac", REWARD),
        steps=SHORT,
    ),
    Rule(
        name="all cut off: responses of the last 3 steps end at the length limit, none rewarded",
        remedy="raise rollout.sampling.max_new_tokens, or see in the report why none of them ends",
        shows=_all_cut_off,
        metrics=("rollout/truncated_frac", REWARD),
        steps=SHORT,
    ),
    Rule(
        name="entropy collapsed, and the reward is below its best",
        remedy="add algorithm/controller=entropy_target, or lower learner.optimizer.lr",
        shows=_collapsed,
        metrics=("policy/entropy", REWARD),
        steps=LONG,
    ),
    Rule(
        name="mismatch rises: sampler and learner disagree ten times as much as at first",
        remedy="add algorithm/correction=tis, lower learner.optimizer.lr or schedule.max_staleness",
        shows=_mismatch_rises,
        metrics=("mismatch/abs_mean",),
        steps=LONG,
    ),
)


class Alerts:
    """Watch over a run's steps: tells an alert when it begins, and again only after it was gone."""

    def __init__(self) -> None:
        self._histories = [History() for _ in RULES]
        self._showing: set[str] = set()

    @property
    def num_showing(self) -> int:
        """Number of the alerts that show after the last step."""
        return len(self._showing)

    def step(self, metrics: Step) -> list[str]:
        """Take the metrics of a finished step and return the lines of the alerts that begin."""
        lines = []
        for rule, history in zip(RULES, self._histories, strict=True):
            if any(metrics.get(name) is None for name in rule.metrics):
                continue
            history.take(metrics)
            shown = len(history.last) >= rule.steps and rule.shows(history)
            if shown and rule.name not in self._showing:
                lines.append(f"{rule.name}; {rule.remedy}")
            (self._showing.add if shown else self._showing.discard)(rule.name)
        return lines
