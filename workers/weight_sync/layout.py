"""Place of every tensor in one flat buffer, agreed by both sides before the first update.

Data flows from a source's metadata to a `Layout`, as a plain dict over the process border, and on
either side to views of a byte buffer. Runs in the learner's ranks and inside vLLM's workers.
Allocates nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.engines.zero.weights import ParameterMeta
from workers.weight_sync.fingerprint import Fingerprint, fingerprint

_ALIGNMENT = 64  # bytes; a cache line, and a multiple of every element size


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Flat buffer of a publication.

    Worked example, two float32 tensors of shapes [2, 3] and [5], aligned to 64 bytes:
        offsets   (0, 64)    num_bytes 128
        to_dict() {"names": ["a", "b"], "dtypes": ["float32", "float32"], "shapes": [[2, 3], [5]]}

    Attributes:
        metas: the tensors in order.
        offsets: the first byte of each.
        num_bytes: size of the buffer.
    """

    metas: tuple[ParameterMeta, ...]
    offsets: tuple[int, ...]
    num_bytes: int

    @classmethod
    def of(cls, metas: Sequence[ParameterMeta]) -> Layout:
        """Lay tensors out one after the other.

        Raises:
            ValueError: no tensor.
        """
        if not metas:
            raise ValueError("there is nothing to publish: the source describes no tensor")
        offsets, end = [], 0
        for meta in metas:
            offsets.append(end)
            end += -(-meta.num_bytes // _ALIGNMENT) * _ALIGNMENT
        return cls(metas=tuple(metas), offsets=tuple(offsets), num_bytes=end)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and strings, for the process border."""
        return {
            "names": [meta.name for meta in self.metas],
            "dtypes": [str(meta.dtype).removeprefix("torch.") for meta in self.metas],
            "shapes": [list(meta.shape) for meta in self.metas],
        }

    @classmethod
    def from_dict(cls, wire: dict[str, Any]) -> Layout:
        """Build the layout that `to_dict` described."""
        return cls.of(
            [
                ParameterMeta(name=name, dtype=getattr(torch, dtype), shape=tuple(shape))
                for name, dtype, shape in zip(
                    wire["names"], wire["dtypes"], wire["shapes"], strict=True
                )
            ]
        )

    def flat_views(self, buffer: Tensor) -> dict[str, Tensor]:
        """View a byte buffer [num_bytes] as flat tensors [n] by name."""
        return {
            meta.name: buffer[offset : offset + meta.num_bytes].view(meta.dtype)
            for meta, offset in zip(self.metas, self.offsets, strict=True)
        }

    def views(self, buffer: Tensor) -> Iterator[tuple[str, Tensor]]:
        """View a byte buffer [num_bytes] as tensors of their full shapes, in order."""
        flat = self.flat_views(buffer)
        for meta in self.metas:
            yield meta.name, flat[meta.name].view(meta.shape)

    def fingerprints(self, buffer: Tensor) -> dict[str, Fingerprint]:
        """Fingerprint every tensor of a byte buffer [num_bytes]."""
        return {name: fingerprint(flat) for name, flat in self.flat_views(buffer).items()}
