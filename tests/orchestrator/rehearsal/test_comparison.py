"""Divisions of the same GPUs between sampling and learning, by hand."""

from dataclasses import replace

import pytest

from conf.schema import TrainConfig
from orchestrator.rehearsal.comparison import divisions, overrides


def config(*, engines, ranks, tensor_parallel=1, sequence_parallel=1):
    whole = TrainConfig()
    return replace(
        whole,
        rollout=replace(whole.rollout, num_engines=engines, tensor_parallel_size=tensor_parallel),
        learner=replace(whole.learner, num_ranks=ranks, sequence_parallel_size=sequence_parallel),
    )


def test_eight_gpus_are_divided_as_the_ratios_say():
    # 8 / (1 + r) ranks: 4 of r = 1, 2.67 -> 3 of r = 2, 2 of r = 3
    assert divisions(config(engines=6, ranks=2), "1,2,3") == [(4, 4), (5, 3), (6, 2)]


def test_equal_divisions_are_compared_once():
    assert divisions(config(engines=2, ranks=2), "1,1.1,3") == [(2, 2), (3, 1)]


def test_an_engine_and_a_group_of_ranks_stay_whole():
    # 16 GPUs: 16 / 4 = 4 ranks, two pairs; the 12 that are left hold 3 engines of 4.
    divided = config(engines=3, ranks=4, tensor_parallel=4, sequence_parallel=2)
    assert divisions(divided, "3") == [(3, 4)]
    # 16 / 8 = 2 ranks, one pair; 14 hold 3 engines, and 2 GPUs are idle.
    assert divisions(divided, "7") == [(3, 2)]


def test_there_is_always_one_of_each():
    assert divisions(config(engines=1, ranks=1), "100,0.01") == [(1, 1), (1, 2)]


@pytest.mark.parametrize("word", ["0", "-1", "two", ""])
def test_a_ratio_that_is_no_positive_number_is_refused(word):
    with pytest.raises(ValueError, match=f"{word!r} is not a positive number"):
        divisions(config(engines=1, ranks=1), f"1,{word}")


def test_what_is_compared_stands_in_three_overrides():
    assert overrides("async", 3, 2) == [
        "schedule=async",
        "rollout.num_engines=3",
        "learner.num_ranks=2",
    ]
