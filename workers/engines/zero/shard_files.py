"""One safetensors file per rank: written in one hashed pass, read back by slices of parameters.

A file holds flat pieces. The piece `exp_avg.model.norm.weight` with offset 64 is elements 64 and on
of the flattened state `exp_avg` of that parameter; the file's metadata maps each parameter to its
offset. Any program that reads safetensors reads these. Runs in every rank of learner and critic.
Knows neither engine nor layout.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workers.data.durable_files import FileRecord, write_file

ALIGNMENT = 8  # bytes; what safetensors pads its header to


def piece_key(kind: str, name: str) -> str:
    """Return the name of a piece within its file."""
    return f"{kind}.{name}"


def write_shard(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> FileRecord:
    """Write flat float32 tensors [n] of the host under their names.

    Args:
        path: of the file.
        tensors: piece key -> contiguous tensor.
        metadata: name -> plain data, kept as JSON.

    Raises:
        OSError: when the disk takes no more.
    """
    header: dict[str, Any] = {
        "__metadata__": {name: json.dumps(value) for name, value in metadata.items()}
    }
    end = 0
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{key} is {tensor.dtype}: only float32 state is checkpointed")
        start, end = end, end + 4 * tensor.numel()
        header[key] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)

    def parts() -> Iterator[Any]:
        yield len(text).to_bytes(8, "little")
        yield text
        for tensor in tensors.values():
            if tensor.numel():
                yield tensor.numpy()

    return write_file(path, parts())


class ShardReader:
    """Pieces of all ranks' files as one set of flattened parameters."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: list[tuple[Path, Any, dict[str, int]]] = []
        self._metadata: list[dict[str, Any]] = []
        for path in paths:
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} can't be read ({error}); restore that file") from error
            text = file.metadata() or {}
            metadata = {name: json.loads(value) for name, value in text.items()}
            self._files.append((path, file, metadata["offsets"]))
            self._metadata.append(metadata)

    def metadata(self, rank: int) -> dict[str, Any] | None:
        """Return the metadata of rank `rank`; None where there was no such rank."""
        return self._metadata[rank] if rank < len(self._metadata) else None

    def scalars(self) -> dict[str, dict[str, float]]:
        """Map parameter -> name -> value of the optimizer's numbers, from all ranks."""
        return {
            name: values
            for metadata in self._metadata
            for name, values in metadata["scalars"].items()
        }

    def kinds(self) -> set[str]:
        """Return the kinds of state that were saved: the weight, and its optimizer state."""
        return {kind for metadata in self._metadata for kind in metadata["kinds"]}

    def read(self, kind: str, name: str, offset: int, out: Tensor) -> None:
        """Fill `out` [n] with elements [offset, offset + n) of a flattened parameter's state.

        Raises:
            ValueError: when the files do not hold all of them.
        """
        end, found = offset + out.numel(), 0
        for _, file, offsets in self._files:
            if name not in offsets:
                continue
            piece = file.get_slice(piece_key(kind, name))
            begins = offsets[name]
            first, last = max(offset, begins), min(end, begins + piece.get_shape()[0])
            if first < last:
                out[first - offset : last - offset].copy_(piece[first - begins : last - begins])
                found += last - first
        if found != out.numel():
            where = self._files[0][0].parent if self._files else "the checkpoint"
            raise ValueError(
                f"{where} holds {found} of elements {offset} to {end} of {kind} of {name}; "
                "a rank's file is missing: restore it"
            )
