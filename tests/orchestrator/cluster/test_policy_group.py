"""Ranks that share their micro-batches get one plan, and answer for it once."""

from types import SimpleNamespace

import numpy as np
import pytest

from orchestrator.cluster.policy_group import PolicyGroup
from workers.data.plans import MicroBatchPlan, RankPlan, StepRows
from workers.worker_group import WorkerGroup


class Rank:
    """A rank that answers with its number and the rows it was given; notes as what it scored."""

    def __init__(self, rank: int) -> None:
        self.scored_base: list[bool] = []

        def compute_logprobs(plan: RankPlan, *_: object, base: bool) -> tuple[int, list[int]]:
            self.scored_base.append(base)
            return rank, rows_of(plan)

        self.compute_logprobs = SimpleNamespace(remote=compute_logprobs)


class Ranks(WorkerGroup):
    """Ranks in this process, to which nothing has to be sent."""

    def put(self, value: object) -> object:
        return value


def rows_of(plan: RankPlan) -> list[int]:
    return [int(row) for micro in plan.micro_batches for row in micro.rows]


def plan(*rows: int) -> RankPlan:
    return RankPlan(updates=((MicroBatchPlan(rows=np.asarray(rows), weights={}),),))


ROWS = StepRows(slices=(), batches=())


@pytest.mark.parametrize(
    ("ranks_per_plan", "answers"),
    [
        (1, [(0, [0, 1]), (1, [2]), (2, [3]), (3, [4])]),
        (2, [(0, [0, 1]), (2, [2])]),
        (4, [(0, [0, 1])]),
    ],
)
def test_the_first_of_those_that_share_answers(
    ranks_per_plan: int, answers: list[tuple[int, list[int]]]
) -> None:
    workers = Ranks("learner", [Rank(rank) for rank in range(4)])
    group = PolicyGroup(workers, train_s=1.0, ranks_per_plan=ranks_per_plan)
    plans = [plan(0, 1), plan(2), plan(3), plan(4)][: 4 // ranks_per_plan]
    assert group.compute_logprobs(plans, ROWS, logprobs="old_logprobs", entropy=None) == answers


def test_a_plan_too_many_or_too_few_is_an_error() -> None:
    workers = Ranks("learner", [Rank(rank) for rank in range(4)])
    group = PolicyGroup(workers, train_s=1.0, ranks_per_plan=2)
    for plans in ([plan(0)], [plan(0), plan(1), plan(2)]):
        with pytest.raises(ValueError, match="zip"):
            group.compute_logprobs(plans, ROWS, logprobs="old_logprobs", entropy=None)


def test_a_learner_with_an_adapter_is_its_own_reference() -> None:
    rank = Rank(0)
    workers = Ranks("learner", [rank])
    learner, reference = (PolicyGroup(workers, train_s=1.0, base=base) for base in (False, True))
    learner.compute_logprobs([plan(0)], ROWS, logprobs="old_logprobs", entropy=None)
    reference.compute_logprobs([plan(0)], ROWS, logprobs="ref_logprobs", entropy=None)
    assert rank.scored_base == [False, True]
