"""Fingerprints of tensors: two 64-bit numbers that any changed, moved or missing bit changes.

It is additive over disjoint slices, so that ZeRO-3 ranks fingerprint what they hold and the sum is
the whole tensor's. Data flows from a flat slice and its offset to (plain sum, position-weighted
sum). Runs in the learner's ranks, on what is sent, and inside vLLM's workers, on what arrived. Not
a cryptographic hash: it finds mistakes, not adversaries.

The tensor's bytes are read as little-endian 64-bit words w_0, w_1, ... (the last one filled with
zeros); a slice is placed at its offset with zeros around it. Modulo 2^64:

    plain = sum_i w_i        weighted = sum_i (i + 1) * w_i

Worked example: the int64 tensor [3 5] has plain 3 + 5 = 8 and weighted 1 * 3 + 2 * 5 = 13. Its
slices [3] at 0 and [5] at 1 have (3, 3) and (5, 10), which add up to the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Fingerprint = tuple[int, int]

_WORD = 8  # bytes
_COLUMNS = 1024


def fingerprint(flat: Tensor, offset: int = 0) -> Fingerprint:
    """Fingerprint a slice of a tensor.

    Args:
        flat: [n] contiguous elements of any dtype of 1, 2, 4 or 8 bytes.
        offset: where the slice begins in the flattened tensor, in elements.

    Returns:
        (plain, weighted), each in [-2^63, 2^63).

    Raises:
        ValueError: a tensor that is not flat and contiguous.
    """
    if flat.dim() != 1 or not flat.is_contiguous():
        raise ValueError(
            f"fingerprint needs a flat contiguous tensor, got shape {tuple(flat.shape)} with "
            f"strides {flat.stride()}: pass tensor.contiguous().view(-1)"
        )
    if flat.numel() == 0:
        return (0, 0)
    size = flat.element_size()
    raw = flat.detach().view(torch.uint8)  # [n * size]
    start = offset * size
    head = min(-start % _WORD, raw.numel())
    body_bytes = (raw.numel() - head) // _WORD * _WORD
    first_word = (start + head) // _WORD
    total = _words(_aligned(raw[head : head + body_bytes]), first_word)
    if head:
        total = _add(total, _words(_padded(raw[:head], start % _WORD), start // _WORD))
    tail = raw[head + body_bytes :]
    if tail.numel():
        total = _add(total, _words(_padded(tail, 0), first_word + body_bytes // _WORD))
    return total


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Fingerprint of a rectangle of a matrix [R, C], with the place of its first element.

    Worked example, the right half of the int64 matrix [[3 5] [7 9]], words 1 and 3 of it:
        row 0    column 1    plain 5 + 9 = 14    weighted 2 * 5 + 4 * 9 = 46
    """

    row: int
    column: int
    plain: int
    weighted: int


def fingerprint_block(block: Tensor, *, row: int, column: int, num_columns: int) -> Block | None:
    """Fingerprint a rectangle of a matrix, as a tensor-parallel worker holds it.

    Args:
        block: [r, c] contiguous elements; a vector is one row.
        row: of the matrix, that stands first in the block.
        column: of the matrix, that stands first in the block.
        num_columns: of the matrix.

    Returns:
        None where the rows of the block do not begin and end with whole words.
    """
    if column == 0 and block.shape[1] == num_columns:
        whole = fingerprint(block.reshape(-1), row * num_columns)
        return Block(row=row, column=column, plain=whole[0], weighted=whole[1])
    size = block.element_size()
    if any(count * size % _WORD for count in (column, block.shape[1], num_columns)):
        return None
    raw = block.detach().contiguous().view(-1).view(torch.uint8)
    words = _aligned(raw).view(block.shape[0], -1)  # [r, w]
    stride, first = num_columns * size // _WORD, column * size // _WORD
    row_sums, column_sums = words.sum(1), words.sum(0)
    rows = torch.arange(row, row + words.shape[0], device=words.device)
    columns = torch.arange(first + 1, first + words.shape[1] + 1, device=words.device)
    weighted = stride * (rows * row_sums).sum() + (columns * column_sums).sum()
    plain, moment = torch.stack([row_sums.sum(), weighted]).tolist()
    return Block(row=row, column=column, plain=plain, weighted=moment)


def join_blocks(blocks: Iterable[Block]) -> Fingerprint:
    """Return the fingerprint of the matrix that blocks make up.

    Equal copies of a block count once. Copies that differ all count, so that the sum is not that of
    any matrix which was sent.
    """
    return combine((block.plain, block.weighted) for block in set(blocks))


def combine(parts: Iterable[Fingerprint]) -> Fingerprint:
    """Return the fingerprint of disjoint slices taken together."""
    total = (0, 0)
    for part in parts:
        total = _add(total, part)
    return total


def _aligned(raw: Tensor) -> Tensor:
    """View bytes [8 k] as words [k]; copy where their memory is not aligned."""
    if raw.storage_offset() % _WORD or raw.data_ptr() % _WORD:
        raw = raw.clone()
    return raw.view(torch.int64)


def _padded(raw: Tensor, at: int) -> Tensor:
    """Place fewer than 8 bytes into one word [1]."""
    word = torch.zeros(_WORD, dtype=torch.uint8, device=raw.device)
    word[at : at + raw.numel()] = raw
    return word.view(torch.int64)


def _words(words: Tensor, first: int) -> Fingerprint:
    """Sum words [k] of which the first has index `first`."""
    num_rows, rest = divmod(words.numel(), _COLUMNS)
    columns = torch.arange(1, _COLUMNS + 1, device=words.device)  # [C] int64
    plain = torch.zeros((), dtype=torch.int64, device=words.device)
    weighted = torch.zeros((), dtype=torch.int64, device=words.device)
    if num_rows:
        # Weights factor into row and column: sum_rc (C r + c + 1) w_rc, two passes over memory.
        grid = words[: num_rows * _COLUMNS].view(num_rows, _COLUMNS)  # [R, C]
        row_sums = grid.sum(1)  # [R]
        rows = torch.arange(num_rows, device=words.device)  # [R]
        plain += row_sums.sum()
        weighted += _COLUMNS * (rows * row_sums).sum() + (columns * grid.sum(0)).sum()
    if rest:
        last = words[num_rows * _COLUMNS :]  # [rest]
        plain += last.sum()
        weighted += ((num_rows * _COLUMNS + columns[:rest]) * last).sum()
    total, moment = torch.stack([plain, weighted]).tolist()
    return (total, _wrap(moment + first * total))


def _add(a: Fingerprint, b: Fingerprint) -> Fingerprint:
    return (_wrap(a[0] + b[0]), _wrap(a[1] + b[1]))


def _wrap(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
