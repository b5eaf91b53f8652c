"""Pack rows of Arrow list columns into flat batches without padding: `PackedBatch`.

Learner, reference and critic ranks run this module. Arrow in, torch out: the values of the chosen
rows are laid end to end, one tensor per column, and `cu_seqlens` marks the start of each sequence.
The module does not know the model or the loss, and does not choose the rows of a micro-batch:
`orchestrator/step/partition.py` does.

Legend: S sequences, N tokens of all of them together. Per-token columns are aligned to tokens:
element i belongs to token i, whose log-probability is predicted at token i - 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from workers.data.images.packed import PackedImages, RowImages, identities, pack_images
from workers.data.shared_prefixes import SharedPrefixes, share_prefixes

#: Begin of the name of a sequence column that holds a part of the reward.
REWARD_PART = "reward_parts/"
ListColumn: TypeAlias = pa.ListArray | pa.LargeListArray | pa.ChunkedArray


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """One micro-batch: S sequences of together N tokens.

    Worked example, two sequences `[5 6 7]` and `[8 9]` whose last tokens train:
        tokens       [5 6 7 8 9]      sequence_ids [0 0 0 1 1]
        position_ids [0 1 2 0 1]      cu_seqlens   [0 3 5]
        loss_mask    [F T T F T]      columns      {"advantages": [0 1 1 0 -1]}

    Attributes:
        tokens: [N] int64.
        position_ids: [N] int64, counted from the start of each sequence.
        sequence_ids: [N] int64, sorted, 0..S-1.
        cu_seqlens: [S+1] int32, the start of each sequence; the last element is N.
        loss_mask: [N] bool; never True on the first token of a sequence.
        columns: name -> [N] float32, per token.
        sequence_columns: name -> [S] float32, per sequence ("rewards", "truncated",
            "reward_parts/format").
        weights: loss term -> [S] float32, the multiplier of every trained token of a sequence.
        num_rows: sequences that are real; 0 for the filler of a rank that ran out of rows.
        prefixes: which tokens a model computes, where siblings share a prefix; None: all of them.
        images: pixels, and the tokens at which their features stand; None where no row shows one.
    """

    tokens: Tensor
    position_ids: Tensor
    sequence_ids: Tensor
    cu_seqlens: Tensor
    loss_mask: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    sequence_columns: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    num_rows: int
    prefixes: SharedPrefixes | None = None
    images: PackedImages | None = None

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.tokens.shape[0]

    @property
    def num_computed(self) -> int:
        """Tokens that a model computes: N, less what siblings share."""
        return self.num_tokens if self.prefixes is None else self.prefixes.computed.shape[0]

    @property
    def num_sequences(self) -> int:
        """S, a filler's sequence included."""
        return self.cu_seqlens.shape[0] - 1

    def split(self, values: Tensor) -> list[npt.NDArray[np.float32]]:
        """Cut per-token `values` [N] into one float32 array per real sequence."""
        flat = values.detach().to("cpu", torch.float32).numpy()  # [N]
        ends = self.cu_seqlens.tolist()
        return [flat[ends[row] : ends[row + 1]] for row in range(self.num_rows)]

    def with_columns(self, columns: Mapping[str, Tensor]) -> "PackedBatch":
        """Return the batch with per-token columns [N] added or replaced."""
        return replace(self, columns={**self.columns, **columns})

    def to(self, device: torch.device | str) -> "PackedBatch":
        """Return the batch on `device`; the same object if it is there already."""
        if self.tokens.device == torch.device(device):
            return self
        return PackedBatch(
            tokens=self.tokens.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            sequence_ids=self.sequence_ids.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            loss_mask=self.loss_mask.to(device, non_blocking=True),
            columns={k: v.to(device, non_blocking=True) for k, v in self.columns.items()},
            sequence_columns={
                k: v.to(device, non_blocking=True) for k, v in self.sequence_columns.items()
            },
            weights={k: v.to(device, non_blocking=True) for k, v in self.weights.items()},
            num_rows=self.num_rows,
            prefixes=None if self.prefixes is None else self.prefixes.to(device),
            images=None if self.images is None else self.images.to(device),
        )


def pack(
    columns: Mapping[str, ListColumn],
    rows: npt.ArrayLike | None = None,
    *,
    sequence_columns: Mapping[str, npt.ArrayLike] | None = None,
    weights: Mapping[str, npt.ArrayLike | Tensor] | None = None,
    groups: npt.ArrayLike | None = None,
    images: RowImages | None = None,
) -> PackedBatch:
    """Lay the chosen rows end to end.

    Args:
        columns: Arrow list columns of equal length: `tokens` and `loss_mask` (absent: nothing
            trains), any others per token. A list must be as long as its row's tokens.
        rows: row indices in the wanted order, or None for all; empty makes a filler.
        sequence_columns: name -> one number for every row of `columns`.
        weights: loss term -> one number for every row of `columns`.
        groups: one number for every row of `columns`; chosen rows of an equal number share their
            common prefix, unless it is `shared_prefixes.ALONE`. None: nothing is shared.
        images: of all rows of `columns`; None where no row shows one.

    Raises:
        ValueError: a column is missing, ragged against the tokens, or null; a sequence is empty;
            the first token of a sequence is marked as trained; a row and its images disagree.
    """
    if "tokens" not in columns:
        raise ValueError(f"no column 'tokens' among {sorted(columns)}: nothing to pack")
    index = None if rows is None else np.asarray(rows, dtype=np.int64)  # [S]
    scalars = {name: _scalars(value, index) for name, value in (sequence_columns or {}).items()}
    multipliers = {name: _scalars(value, index) for name, value in (weights or {}).items()}
    if index is not None and len(index) == 0:
        return _filler(columns, scalars, multipliers)
    tokens, lengths = _flatten("tokens", columns["tokens"], index)
    if len(lengths) == 0 or lengths.min() == 0:
        empty = np.flatnonzero(lengths == 0)
        raise ValueError(f"rows {empty.tolist()[:8]} have no tokens: drop them before packing")
    flat = {}
    for name in columns:
        if name == "tokens":
            continue
        flat[name], own = _flatten(name, columns[name], index)
        if not np.array_equal(own, lengths):
            where = int(np.flatnonzero(own != lengths)[0])
            raise ValueError(
                f"column {name!r} has {own[where]} values where row {where} has {lengths[where]} "
                "tokens: per-token columns are aligned to tokens, prompt included"
            )
    mask = flat.pop("loss_mask", np.zeros(len(tokens), dtype=np.bool_))
    batch = _packed(tokens, lengths, mask, flat, scalars, multipliers, num_rows=len(lengths))
    if images is not None:
        chosen = range(len(images.spans)) if index is None else index
        shown = replace(images, spans=[images.spans[row] for row in chosen])
        batch = replace(batch, images=_images(batch, shown))
    if groups is None:
        return batch
    number = np.asarray(groups, dtype=np.int64)  # [rows]
    number = number if index is None else number[index]  # [S]
    ends = batch.cu_seqlens.numpy().astype(np.int64)  # [S+1]
    read = identities(tokens, batch.images)
    return replace(batch, prefixes=share_prefixes(read, ends, number))


def pack_sequences(
    sequences: Sequence[Sequence[int]], images: RowImages | None = None
) -> PackedBatch:
    """Pack plain token lists whose every token but the first is to be scored (a probe)."""
    lengths = np.asarray([len(sequence) for sequence in sequences], dtype=np.int64)  # [S]
    if len(lengths) == 0 or lengths.min() == 0:
        raise ValueError("pack_sequences needs at least one sequence, none of them empty")
    tokens = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
    mask = np.ones(len(tokens), dtype=np.bool_)  # [N]
    mask[np.cumsum(lengths) - lengths] = False
    batch = _packed(tokens, lengths, mask, {}, {}, {}, num_rows=len(lengths))
    return batch if images is None else replace(batch, images=_images(batch, images))


def _images(batch: PackedBatch, images: RowImages) -> PackedImages | None:
    ends = batch.cu_seqlens.numpy().astype(np.int64)  # [S+1]
    return pack_images(batch.tokens.numpy(), ends, images)


def _packed(
    tokens: npt.NDArray[np.generic],  # [N]
    lengths: npt.NDArray[np.int64],  # [S]
    mask: npt.NDArray[np.generic],  # [N]
    flat: Mapping[str, npt.NDArray[np.generic]],
    scalars: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    num_rows: int,
) -> PackedBatch:
    ends = np.zeros(len(lengths) + 1, dtype=np.int64)  # [S+1]
    np.cumsum(lengths, out=ends[1:])
    if mask[ends[:-1]].any():
        row = int(np.flatnonzero(mask[ends[:-1]])[0])
        raise ValueError(
            f"loss_mask is True on the first token of row {row}: no earlier token predicts it, "
            "mark it False"
        )
    return PackedBatch(
        tokens=torch.from_numpy(tokens.astype(np.int64)),
        position_ids=torch.from_numpy(np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)),
        sequence_ids=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
        cu_seqlens=torch.from_numpy(ends.astype(np.int32)),
        loss_mask=torch.from_numpy(mask.astype(np.bool_)),
        columns={name: torch.from_numpy(v.astype(np.float32)) for name, v in flat.items()},
        sequence_columns=scalars,
        weights=weights,
        num_rows=num_rows,
    )


def _flatten(
    name: str, column: ListColumn, index: npt.NDArray[np.int64] | None
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]:
    """Return values [N] and list lengths [S] of the chosen rows; neighbours are not copied."""
    column = _chosen(column, index)
    values = column.flatten()
    if column.null_count or values.null_count:
        raise ValueError(f"column {name!r} holds nulls: fill or drop those rows before packing")
    return (
        values.to_numpy(zero_copy_only=False),
        np.diff(column.offsets.to_numpy()).astype(np.int64),
    )


def _chosen(column: ListColumn, index: npt.NDArray[np.int64] | None) -> pa.Array:
    """Return the chosen rows, copying no other: a step's table has a chunk for every group."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if index is None:
        return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    if len(index) and not 0 <= index.min() <= index.max() < len(column):
        raise IndexError(f"rows {index.min()} to {index.max()} of a table of {len(column)}")
    ends = np.cumsum([len(chunk) for chunk in chunks])
    runs = np.flatnonzero(np.diff(index) != 1) + 1  # where neighbours end
    pieces = []
    for first, last in zip([0, *runs], [*runs, len(index)], strict=True):
        row, beyond = int(index[first]), int(index[last - 1]) + 1
        while row < beyond:
            number = int(np.searchsorted(ends, row, side="right"))
            end = min(beyond, int(ends[number]))
            start = int(ends[number]) - len(chunks[number])
            pieces.append(chunks[number].slice(row - start, end - row))
            row = end
    return pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)


def _scalars(value: npt.ArrayLike | Tensor, index: npt.NDArray[np.int64] | None) -> Tensor:
    array = np.asarray(value, dtype=np.float32)  # [rows]
    return torch.from_numpy(array.copy() if index is None else array[index])


def _filler(
    columns: Mapping[str, ListColumn], scalars: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> PackedBatch:
    """Make a batch of two untrained tokens, so that a rank without rows joins every collective."""
    names = [name for name in columns if name not in ("tokens", "loss_mask")]
    return _packed(
        np.zeros(2, dtype=np.int64),
        np.asarray([2], dtype=np.int64),
        np.zeros(2, dtype=np.bool_),
        {name: np.zeros(2, dtype=np.float32) for name in names},
        {name: torch.zeros(1) for name in scalars},
        {name: torch.zeros(1) for name in weights},
        num_rows=0,
    )
