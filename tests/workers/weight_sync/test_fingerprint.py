"""Fingerprints: literal values, additivity over slices, and what changes them."""

from itertools import pairwise

import pytest
import torch

from workers.weight_sync.fingerprint import (
    Block,
    combine,
    fingerprint,
    fingerprint_block,
    join_blocks,
)


def test_words_are_summed_plainly_and_by_position():
    # 1*5 + 2*6 + 3*7 = 38
    assert fingerprint(torch.tensor([5, 6, 7], dtype=torch.int64)) == (18, 38)


def test_small_elements_fill_little_endian_words():
    # words: 1 + 2*2^16 + 3*2^32 + 4*2^48, and 5
    first = 1 + (2 << 16) + (3 << 32) + (4 << 48)
    flat = torch.tensor([1, 2, 3, 4, 5], dtype=torch.int16)
    assert fingerprint(flat) == (first + 5, first + 2 * 5)


def test_sums_wrap_at_64_bits():
    # 2 * (2^63 - 1) = -2 modulo 2^64; weighted 3 * (2^63 - 1) = 2^63 - 3 + 2^64
    largest = torch.iinfo(torch.int64).max
    flat = torch.tensor([largest, largest], dtype=torch.int64)
    assert fingerprint(flat) == (-2, 2**63 - 3)


def test_empty_slice_is_zero():
    assert fingerprint(torch.empty(0)) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("cuts", [(1,), (3, 4), (7, 1025, 4099), (4096, 8192), (5000,)])
def test_slices_add_up_to_the_whole(dtype, cuts):
    torch.manual_seed(0)
    flat = torch.randn(9001).to(dtype)
    bounds = [0, *cuts, flat.numel()]
    parts = [fingerprint(flat[a:b], a) for a, b in pairwise(bounds)]
    assert combine(parts) == fingerprint(flat)
    copies = [fingerprint(flat[a:b].clone(), a) for a, b in pairwise(bounds)]
    assert combine(copies) == fingerprint(flat)


@pytest.mark.parametrize(("i", "j"), [(0, 1), (0, 2), (17, 5000), (1024, 2048)])
def test_swapping_two_elements_changes_it(i, j):
    torch.manual_seed(0)
    flat = torch.randn(8192)
    swapped = flat.clone()
    swapped[[i, j]] = flat[[j, i]]
    assert fingerprint(swapped) != fingerprint(flat)


def test_a_matrix_and_its_transpose_differ():
    torch.manual_seed(0)
    matrix = torch.randn(64, 64)
    assert fingerprint(matrix.view(-1)) != fingerprint(matrix.t().contiguous().view(-1))


def test_a_matrix_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"\(2, 3\).*contiguous\(\)\.view\(-1\)"):
        fingerprint(torch.zeros(2, 3))


def test_a_block_of_a_matrix_by_hand():
    right = torch.tensor([[5], [9]])  # of [[3 5] [7 9]]: words 1 and 3
    block = fingerprint_block(right, row=0, column=1, num_columns=2)
    assert block == Block(row=0, column=1, plain=14, weighted=2 * 5 + 4 * 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_blocks_of_every_split_add_up_to_the_matrix(dtype):
    matrix = (torch.randn(12, 16) * 100).to(dtype)
    whole = fingerprint(matrix.view(-1))
    rows = [
        fingerprint_block(part, row=6 * k, column=0, num_columns=16)
        for k, part in enumerate(matrix.split(6))
    ]
    columns = [
        fingerprint_block(part, row=0, column=8 * k, num_columns=16)
        for k, part in enumerate(matrix.split(8, dim=1))
    ]
    assert join_blocks(rows) == whole
    assert join_blocks(columns) == whole
    assert join_blocks([*rows, rows[1]]) == whole  # two workers with the same heads
    assert join_blocks(rows[:1]) != whole
    other = matrix[6:].clone()
    other[0, 0] += 1
    wrong = fingerprint_block(other, row=6, column=0, num_columns=16)
    assert join_blocks([*rows, wrong]) != whole  # one of two copies differs


def test_rows_that_end_within_a_word_are_not_shown():
    part = torch.zeros(4, 3, dtype=torch.bfloat16)  # 6 bytes
    assert fingerprint_block(part, row=0, column=3, num_columns=6) is None
