"""Tests of the layout that computes a prefix of siblings once, by hand."""

import numpy as np
import pytest

from workers.data.shared_prefixes import ALONE, SharedPrefixes, share_prefixes


def share(rows: list[list[int]], groups: list[int]) -> SharedPrefixes | None:
    ends = np.cumsum([0, *(len(row) for row in rows)])
    return share_prefixes(np.concatenate(rows), ends, np.asarray(groups))


def test_two_siblings_and_a_single_sequence() -> None:
    layout = share([[5, 6, 7], [5, 6, 8, 9], [4, 3]], [0, 0, 1])
    assert layout is not None
    assert layout.computed.tolist() == [0, 1, 7, 8, 2, 5, 6]
    assert layout.places.tolist() == [0, 1, 4, 0, 1, 5, 6, 2, 3]
    assert layout.cu_prefixes.tolist() == [0, 2, 4]
    assert layout.cu_suffixes.tolist() == [4, 5, 7]
    assert layout.owners.tolist() == [0, 0]


def test_siblings_need_not_be_neighbours() -> None:
    layout = share([[5, 6, 7], [4, 3, 1], [5, 6, 8], [4, 3, 2]], [0, 1, 0, 1])
    assert layout is not None
    assert layout.computed.tolist() == [0, 1, 3, 4, 2, 5, 8, 11]
    assert layout.owners.tolist() == [0, 1, 0, 1]


def test_identical_siblings_are_computed_once() -> None:
    layout = share([[5, 6, 7], [5, 6, 7]], [0, 0])
    assert layout is not None
    assert layout.computed.tolist() == [0, 1, 2]
    assert layout.places.tolist() == [0, 1, 2, 0, 1, 2]
    assert layout.cu_suffixes.tolist() == [3]
    assert layout.owners.tolist() == []


def test_a_sibling_that_is_the_prefix_of_another_has_no_suffix() -> None:
    layout = share([[5, 6, 7], [5, 6]], [3, 3])
    assert layout is not None
    assert layout.computed.tolist() == [0, 1, 2]
    assert layout.places.tolist() == [0, 1, 2, 0, 1]
    assert layout.cu_suffixes.tolist() == [2, 3]
    assert layout.owners.tolist() == [0]


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        ([[5, 6], [5, 7]], [0, 1]),  # of two groups
        ([[5, 6], [5, 7]], [ALONE, ALONE]),
        ([[5, 6], [4, 6]], [0, 0]),  # no token in common
        ([[5, 6]], [0]),
    ],
)
def test_nothing_to_share_is_no_layout(rows: list[list[int]], groups: list[int]) -> None:
    assert share(rows, groups) is None


def test_every_token_is_found_where_it_is_computed() -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 3, size).tolist() for size in (4, 1, 7)]
    groups = rng.integers(-1, 3, 40)
    rows = [prompts[group] + rng.integers(0, 3, rng.integers(1, 6)).tolist() for group in groups]
    layout = share(rows, groups.tolist())
    assert layout is not None
    tokens = np.concatenate(rows)
    computed = tokens[layout.computed.numpy()]
    assert computed[layout.places.numpy()].tolist() == tokens.tolist()
    assert len(set(layout.computed.tolist())) == len(layout.computed) < len(tokens)
    assert layout.cu_suffixes[0] == layout.cu_prefixes[-1]
    assert layout.cu_suffixes[-1] == len(computed)
