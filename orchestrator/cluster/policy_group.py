"""Call a group of policy ranks: plans in, references to Arrow columns out.

Runs in the driver, which only passes references on: a step's trajectories and computed columns stay
in the object store. The same group serves as learner and, having the same weights when a step
begins, as actor; another group without an optimizer serves as reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from workers.calls import bind
from workers.data.plans import CreditPlan, RankPlan, StepRows
from workers.learner.policy_worker import PolicyWorker, TrainReport
from workers.worker_group import WorkerGroup


class Policy(Protocol):
    """Policy as the training loop calls it: learner, actor or reference."""

    def compute_logprobs(
        self, plans: Sequence[RankPlan], rows: StepRows, *, logprobs: str, entropy: str | None
    ) -> list[Any]:
        """Start a no-grad pass; return references to the named columns."""

    def credit(
        self, plan: CreditPlan, rows: StepRows, computed: Sequence[Any]
    ) -> tuple[Any, Mapping[str, float]]:
        """Compute the advantages of the whole step; return their reference, and metrics."""

    def train(
        self, plans: Sequence[RankPlan], rows: StepRows, computed: Sequence[Any]
    ) -> tuple[list[Any], list[TrainReport]]:
        """Run the optimizer updates; return `logprobs` columns and a report for every plan."""

    def follow(self, policy: Any, *, share: float) -> None:
        """Move these weights towards another policy's: (1 - share) own + share theirs."""


class PolicyGroup:
    """Group of all ranks of one policy: a `Policy`.

    Args:
        workers: the ranks.
        train_s: longest that a step's updates may take, in seconds.
        ranks_per_plan: neighbouring ranks that share their micro-batches: they get the same plan,
            each of them answers for the whole plan, and the answer of the first is taken.
        base: the ranks score as the model that their adapter was attached to: a reference that
            takes no memory and no process of its own.
    """

    def __init__(
        self,
        workers: WorkerGroup[PolicyWorker],
        *,
        train_s: float,
        ranks_per_plan: int = 1,
        base: bool = False,
    ) -> None:
        self.workers = workers
        self._base = base
        self._train_s = train_s
        self._ranks_per_plan = ranks_per_plan

    def compute_logprobs(
        self, plans: Sequence[RankPlan], rows: StepRows, *, logprobs: str, entropy: str | None
    ) -> list[Any]:
        """Start a no-grad pass; return a reference per plan to a batch of the named columns."""
        where = self.workers.put(rows)
        score = PolicyWorker.compute_logprobs
        columns = [
            self.workers.send(rank, bind(score, plan, where, logprobs, entropy, base=self._base))
            for rank, plan in zip(self.workers.ranks, self._of_ranks(plans), strict=True)
        ]
        return columns[:: self._ranks_per_plan]

    def credit(
        self, plan: CreditPlan, rows: StepRows, computed: Sequence[Any]
    ) -> tuple[Any, Mapping[str, float]]:
        """Compute the whole step's advantages on rank 0; return their reference, and metrics."""
        call = bind(PolicyWorker.credit, plan, self.workers.put(rows), *computed)
        columns, metrics = self.workers.only([0]).start_pairs([call], timeout_s=self._train_s)
        return columns[0], metrics.result()[0]

    def train(
        self, plans: Sequence[RankPlan], rows: StepRows, computed: Sequence[Any]
    ) -> tuple[list[Any], list[TrainReport]]:
        """Run the optimizer updates; return `logprobs` columns and a report for every plan."""
        where = self.workers.put(rows)
        calls = [bind(PolicyWorker.train, plan, where, *computed) for plan in self._of_ranks(plans)]
        columns, pending = self.workers.start_pairs(calls, timeout_s=self._train_s)
        reports = pending.result()
        return columns[:: self._ranks_per_plan], reports[:: self._ranks_per_plan]

    def _of_ranks(self, plans: Sequence[RankPlan]) -> list[RankPlan]:
        """Return the plan of every rank."""
        return [plan for plan in plans for _ in range(self._ranks_per_plan)]

    def follow(self, policy: PolicyGroup, *, share: float) -> None:
        """Move these weights towards another group's: (1 - share) own + share theirs.

        Layers go one by one through the object store, so that neither side, whatever its ZeRO
        stage, ever holds more than one layer in full; with `share` 1 the copy is exact to the bit.
        This side must have no optimizer.

        Raises:
            WorkerError: a rank did not answer, or could not take the tensors.
            ValueError: the two groups are not of the same model.
        """
        theirs, limit_s = policy.workers, self._train_s
        moved = 0
        for number in range(theirs.call_first(bind(PolicyWorker.num_layers), timeout_s=limit_s)):
            # The second value is what the driver waits for; the first it never fetches.
            read = [bind(PolicyWorker.read_layer, number)] * len(theirs)
            layers, done = theirs.start_pairs(read, timeout_s=limit_s)
            done.result()
            tensors: Any = layers[0]
            move = bind(PolicyWorker.move_layer, share, tensors)
            moved += self.workers.call(move, timeout_s=limit_s)[0]
        have = len(self.workers.call_first(bind(PolicyWorker.parameter_names), timeout_s=limit_s))
        if moved != have:
            raise ValueError(
                f"{self.workers.role} has {have} tensors, {theirs.role} gave {moved}: both must be "
                "the same model"
            )


def training_metrics(reports: Sequence[TrainReport]) -> dict[str, float]:
    """Merge the ranks' reports into one.

    Metrics are global already, so those of the first rank are taken; gaps are per rank and summed.
    """
    tokens = max(1, sum(report.gap_tokens for report in reports))
    return {
        **reports[0].metrics,
        "learner/steps": float(reports[0].steps_taken),
        "mismatch/abs_mean": sum(report.gap_sum for report in reports) / tokens,
        "mismatch/abs_max": max(report.gap_max for report in reports),
    }
