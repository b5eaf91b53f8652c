"""Rows of one prompt, and the pieces into which groups of them are cut."""

import numpy as np

from orchestrator.step.siblings import Siblings, alone, computed_tokens, pieces, siblings_of
from workers.data.shared_prefixes import ALONE
from workers.data.trajectory import TrajectoryMeta


def meta(num_prompt: int, prompt_crc: int) -> TrajectoryMeta:
    return TrajectoryMeta(
        prompt_uid="p",
        group_id="g",
        rollout_id="r",
        num_tokens=num_prompt + 3,
        num_trained=3,
        num_sampled=3,
        finish_reason="stop",
        outcome="scored",
        reward=1.0,
        reward_parts={},
        min_version=1,
        max_version=1,
        generate_s=0.1,
        reward_s=0.01,
        num_prompt=num_prompt,
        prompt_crc=prompt_crc,
    )


def test_rows_of_one_group_with_one_prompt_are_siblings() -> None:
    metas = [
        meta(5, 77),
        meta(5, 77),
        meta(5, 77),
        meta(5, 78),
        meta(0, 0),
        meta(0, 0),
        meta(5, 77),
    ]
    found = siblings_of(metas, np.asarray([0, 0, 1, 0, 2, 2, 1]))
    # Row 3 begins otherwise than its siblings, rows 4 and 5 have no prompt.
    assert found.groups.tolist() == [0, 0, 1, ALONE, ALONE, ALONE, 1]
    assert found.prefixes.tolist() == [5, 5, 5, 0, 0, 0, 5]
    assert found.largest == 2
    assert alone(3).largest == 1


def test_computed_tokens_by_hand() -> None:
    siblings = Siblings(groups=np.asarray([0, 0, 0]), prefixes=np.asarray([10, 10, 10]))
    # 10 once, and the rests 2 + 3 + 4
    assert computed_tokens(np.asarray([12, 13, 14]), siblings, np.asarray([0, 1, 2])) == 19


def cut(token_budget: int, num_parts: int) -> list[list[int]]:
    """Four siblings behind 10 tokens with rests of 5, 4, 4, 1, and one row alone."""
    lengths = np.asarray([15, 14, 9, 14, 11])
    siblings = Siblings(
        groups=np.asarray([3, 3, ALONE, 3, 3]), prefixes=np.asarray([10, 10, 0, 10, 10])
    )
    found = pieces(lengths, siblings, token_budget=token_budget, num_parts=num_parts)
    assert sorted(np.concatenate(found).tolist()) == [0, 1, 2, 3, 4]
    return [piece.tolist() for piece in found]


def test_a_group_is_cut_where_it_must_be() -> None:
    assert cut(24, 1) == [[0, 1, 3, 4], [2]]  # 10 + 14
    assert cut(18, 1) == [[0, 4], [1, 3], [2]]  # 10 + 5 + 1, 10 + 4 + 4
    assert len(cut(15, 1)) == 4  # 5, 4 and 4 + 1 behind a prefix each
    assert len(cut(24, 2)) == 3
    assert len(cut(24, 8)) == 5  # never more pieces than rows
