"""Simulate learner, reference, critic and publication, which cost time and compute nothing.

A rank's time for a sequence of L tokens is (L + q L^2) / speed, with q from the model's sizes: the
cost that `orchestrator.step.partition` balances. Ranks wait for each other at every optimizer
update and, under ZeRO-3, at every micro-batch. Roles that share GPUs share `Devices` and take turns
on them; other roles compute side by side. Plans are pickled, rank by rank, and the CPU time counts
as the driver's. All simulated roles run in the rehearsing process.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from conf.schema import RehearsalConfig
from orchestrator.rehearsal.engines import SimulatedEngines
from orchestrator.rehearsal.metering import CpuMeter
from orchestrator.rehearsal.timeline import SimulatedTime
from orchestrator.step.partition import SequenceCost
from workers.data.plans import CreditPlan, RankPlan, StepRows
from workers.learner.policy_worker import TrainReport
from workers.spans import Activity, Span


@dataclass(kw_only=True)
class Devices:
    """GPUs that do one thing after the other.

    Attributes:
        role: under which their time is accounted.
        spans: of their work, until the rehearsal takes them out.
    """

    role: str
    timeline: SimulatedTime
    free_at: float = 0.0
    busy_s: float = 0.0
    spans: list[Span] = field(default_factory=list)

    def take(self, activity: Activity, seconds: float, *, after: float = 0.0) -> float:
        """Queue `seconds` of work that may begin at `after`; return the moment of its end."""
        began = max(self.timeline.now, self.free_at, after)
        self.free_at = began + seconds
        self.busy_s += seconds
        self.spans.append(Span(activity=activity, begin_s=began, end_s=self.free_at))
        return self.free_at


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A reference to a computed column, which is there from `ready_at` on."""

    ready_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """Calls whose answers are there from `ready_at` on."""

    answers: list[Any]
    ready_at: float
    timeline: SimulatedTime
    meter: CpuMeter

    def result(self) -> list[Any]:
        """Wait for the answers, and return them."""
        with self.meter.simulating():
            self.timeline.run_until(self.ready_at)
        return self.answers


@dataclass(kw_only=True)
class Ranks:
    """The ranks of one model, and the time that they take.

    Attributes:
        devices: where they compute.
        cost: of a sequence, one token at length 0 being 1.
        lockstep: True if they wait for each other at every micro-batch.
        width: ranks that share the micro-batches of one plan.
    """

    settings: RehearsalConfig
    devices: Devices
    timeline: SimulatedTime
    meter: CpuMeter
    cost: SequenceCost
    lockstep: bool
    width: int = 1

    def send(self, plans: Sequence[RankPlan], rows: StepRows) -> None:
        """Pickle the plan of every rank, as the driver does to send it."""
        pickle.dumps(rows.slices, protocol=5)
        for plan in plans:
            for _ in range(self.width):
                pickle.dumps(plan, protocol=5)

    def forward_s(self, plans: Sequence[RankPlan], rows: StepRows) -> float:
        """Return the seconds of one no-grad pass over the rows."""
        tokens = num_tokens(rows)
        each = [[micro.rows for micro in plan.micro_batches] for plan in plans]
        return self._together(each, tokens) / (self.settings.score_tokens_per_s * self.width)

    def train_s(self, plans: Sequence[RankPlan], rows: StepRows) -> float:
        """Return the seconds of all optimizer updates, which the ranks begin together."""
        tokens, total = num_tokens(rows), 0.0
        for number in range(len(plans[0].updates)):
            each = [[micro.rows for micro in plan.updates[number]] for plan in plans]
            total += self._together(each, tokens)
        updates = len(plans[0].updates) * self.settings.update_s
        return updates + total / (self.settings.train_tokens_per_s * self.width)

    def _together(
        self, ranks: Sequence[Sequence[npt.NDArray[np.int64]]], tokens: npt.NDArray[np.int64]
    ) -> float:
        """Return the cost of the slowest rank, in total or, in lock-step, per micro-batch."""
        costs = np.asarray(
            [[self.cost(tokens[chosen]).sum() for chosen in rank] for rank in ranks]
        )  # [R, K]
        slowest = costs.max(axis=0).sum() if self.lockstep else costs.sum(axis=1).max()
        return float(slowest) / self.cost.linear


def num_tokens(rows: StepRows) -> npt.NDArray[np.int64]:
    """Return the tokens [S] of a step's sequences, prompts included."""
    pieces = (
        rows.batches[piece.batch].num_tokens[piece.start : piece.start + piece.length]
        for piece in rows.slices
    )
    return np.asarray([tokens for piece in pieces for tokens in piece], dtype=np.int64)


class SimulatedPolicy:
    """Simulated learner, actor or reference: a `Policy` that computes nothing.

    Args:
        ranks: of the role.
        measured: metrics to report of training.
    """

    def __init__(self, ranks: Ranks, measured: Mapping[str, float]) -> None:
        self._ranks, self._measured = ranks, dict(measured)

    def compute_logprobs(
        self,
        plans: Sequence[RankPlan],
        rows: StepRows,
        *,
        logprobs: str,  # noqa: ARG002 - columns have no content
        entropy: str | None,  # noqa: ARG002
    ) -> list[Any]:
        """Start a pass; return one column per plan."""
        self._ranks.send(plans, rows)
        with self._ranks.meter.simulating():
            done = self._ranks.devices.take("score", self._ranks.forward_s(plans, rows))
        return [Column(done) for _ in plans]

    def credit(
        self, plan: CreditPlan, rows: StepRows, computed: Sequence[Any]
    ) -> tuple[Any, Mapping[str, float]]:
        """Take the time of credit on one rank, once all columns are computed; return its column."""
        pickle.dumps((plan, rows.slices), protocol=5)
        with self._ranks.meter.simulating():
            seconds = float(num_tokens(rows).sum()) / self._ranks.settings.credit_tokens_per_s
            column = Column(self._ranks.devices.take("credit", seconds, after=_latest(computed)))
            self._ranks.timeline.run_until(column.ready_at)
        return column, {}

    def train(
        self, plans: Sequence[RankPlan], rows: StepRows, computed: Sequence[Any]
    ) -> tuple[list[Any], list[TrainReport]]:
        """Take the time of the updates; return one column and one report per plan."""
        ranks = self._ranks
        ranks.send(plans, rows)
        with ranks.meter.simulating():
            done = ranks.devices.take("learn", ranks.train_s(plans, rows), after=_latest(computed))
            ranks.timeline.run_until(done)
        report = TrainReport(
            metrics=self._measured,
            steps_taken=len(plans[0].updates),
            non_finite=(),
            skipped_in_a_row=0,
            gap_sum=0.0,
            gap_max=0.0,
            gap_tokens=0,
        )
        return [Column(done) for _ in plans], [report for _ in plans]

    def follow(self, policy: Any, *, share: float) -> None:
        """Do nothing: there are no weights to move."""


class SimulatedCritic:
    """Simulated critic: a `ValueFunction` that computes nothing."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def values(self, plans: Sequence[RankPlan], rows: StepRows) -> list[Any]:
        """Start a pass; return one column per rank."""
        self._ranks.send(plans, rows)
        with self._ranks.meter.simulating():
            done = self._ranks.devices.take("score", self._ranks.forward_s(plans, rows))
        return [Column(done) for _ in plans]

    def train(self, plans: Sequence[RankPlan], rows: StepRows, computed: Sequence[Any]) -> Answered:
        """Start the updates."""
        ranks = self._ranks
        ranks.send(plans, rows)
        with ranks.meter.simulating():
            done = ranks.devices.take("learn", ranks.train_s(plans, rows), after=_latest(computed))
        metrics: list[Any] = [{} for _ in plans]
        return Answered(answers=metrics, ready_at=done, timeline=ranks.timeline, meter=ranks.meter)


def _latest(columns: Sequence[Column]) -> float:
    return max((column.ready_at for column in columns), default=0.0)


@dataclass(kw_only=True)
class SimulatedPublisher:
    """Simulated publisher: engines pause at the end of each publication and get other weights.

    The keys and values of running responses are computed again, as vLLM does by our settings.

    Attributes:
        learner: the devices that send a publication.
    """

    settings: RehearsalConfig
    timeline: SimulatedTime
    meter: CpuMeter
    engines: SimulatedEngines
    learner: Devices

    def begin(self, version: int) -> dict[str, float]:
        """Give all engines the learner's weights at once."""
        with self.meter.simulating():
            self._give(0.0, version)
        return {}

    def publish(self, version: int, *, stepped: bool) -> dict[str, float]:  # noqa: ARG002
        """Take the time of a publication, after which every engine is at `version`."""
        with self.meter.simulating():
            done = self.learner.take("publish", self.settings.publish_s)
            self.timeline.run_until(done - self.settings.pause_s)
            self._give(self.settings.pause_s, version)
            self.timeline.run_until(done)
        return {"publication/total_s": self.settings.publish_s}

    def _give(self, pause_s: float, version: int) -> None:
        for worker in self.engines.workers:
            worker.pause(pause_s, version)
