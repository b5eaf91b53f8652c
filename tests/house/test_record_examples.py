"""The worked example of a record builds that record, and every shared record has an example."""

import inspect
import textwrap
from collections import Counter
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from orchestrator.step import batch, partition
from orchestrator.supply import source
from orchestrator.telemetry import heldout
from workers import spans
from workers.data import durable_files, plans, requests, results, trajectory, turns
from workers.learner import passes, policy_worker, weight_client
from workers.reward import base
from workers.rollout import limits, row
from workers.rollout.environments import contract

# All records of these modules are shared by processes.
SHARED = (durable_files, plans, requests, results, trajectory, turns, spans, base)
RECORDS = (
    *(
        record
        for module in SHARED
        for record in vars(module).values()
        if is_dataclass(record) and record.__module__ == module.__name__  # type: ignore[union-attr]
    ),
    batch.StepBatch,
    partition.Partition,
    source.Taken,
    heldout.HeldoutAnswer,
    heldout.HeldoutResult,
    passes.Trained,
    policy_worker.TrainReport,
    weight_client.Destination,
    row.Row,
    limits.RolloutLimits,
    contract.Task,
    contract.Turn,
    contract.Outcome,
)
ELSEWHERE = (
    *(batch, partition, source, heldout, passes, policy_worker, weight_client),
    *(limits, row, contract),
)


def meta(**changes: Any) -> trajectory.TrajectoryMeta:
    values: dict[str, Any] = {
        "prompt_uid": "train:7",
        "group_id": "0-7",
        "rollout_id": "0-7/0",
        "num_tokens": 4,
        "num_trained": 2,
        "num_sampled": 2,
        "finish_reason": "stop",
        "outcome": "scored",
        "reward": 1.0,
        "reward_parts": {"exact": 1.0},
        "min_version": 7,
        "max_version": 7,
        "generate_s": 0.8,
        "reward_s": 0.01,
        "num_prompt": 2,
        "prompt_crc": 1726259858,
    }
    return trajectory.TrajectoryMeta(**(values | changes))


def names_in(module: ModuleType) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if inspect.isclass(value)}


# The names that examples use for what is no literal: references, handles and other records.
STAND_INS: dict[str, Any] = {
    "np": np,
    "Counter": Counter,
    **{name: meta() for name in ("first", "second", "meta_0", "meta_1", "meta_2", "meta_3")},
    **{name: name for name in ("ref_0", "ref_1", "engine_0", "engine_1")},
    "group": trajectory.RolloutGroup(group_id="0-7", metas=(meta(),), batch="ref_0", start=0),
}


def examples(record: type) -> list[Any]:
    """Build every example of a record's docstring: the indented text after a line 'Example...:'."""
    names = dict(STAND_INS)
    for module in (*SHARED, *ELSEWHERE):
        names |= names_in(module)
    built, lines = [], inspect.cleandoc(record.__doc__ or "").splitlines()
    while lines:
        if not lines.pop(0).startswith("Example"):
            continue
        while lines and not lines[0].startswith(" "):  # the rest of the sentence
            lines.pop(0)
        text = []
        while lines and lines[0].startswith(" "):
            text.append(lines.pop(0))
        built.append(eval(textwrap.dedent("\n".join(text)), names))
    return built


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_a_record_that_processes_share_shows_an_example_that_builds_it(record: type):
    built = examples(record)
    assert built, f"{record.__qualname__} has no 'Example:' with literal values in its docstring"
    assert all(type(example) is record for example in built)


def test_the_example_of_metadata_describes_the_example_of_a_trajectory():
    (sample,), (described,) = (
        examples(trajectory.Trajectory),
        examples(trajectory.TrajectoryMeta),
    )
    assert trajectory.describe(sample) == described == meta()


def test_the_example_of_a_partition_is_what_partition_returns():
    (shown,) = examples(partition.Partition)
    found = partition.partition([5, 3, 2], num_ranks=2, token_budget=5)
    assert [[part.tolist() for part in rank] for rank in found.rows] == [[[0]], [[1, 2]]]
    assert [[part.tolist() for part in rank] for rank in shown.rows] == [[[0]], [[1, 2]]]
    assert (found.imbalance, found.fill_frac) == (shown.imbalance, shown.fill_frac) == (1.0, 1.0)


def test_the_example_of_a_batch_masks_the_tokens_of_the_filtered_group():
    (shown,) = examples(batch.StepBatch)
    assert shown.lengths.tolist() == [2, 2, 0, 0]
    assert shown.num_groups == 2
