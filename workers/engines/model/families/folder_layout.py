"""Layout of a model folder: the tensors that it holds, their names, shapes and dtypes.

transformers changes names and shapes as it reads a folder (the matrices of experts are fused into
one), ties some tensors to others, and leaves some out. An export undoes all of it, layer by layer,
so that the folder that is written has the names, shapes and dtypes of the folder that was read.
Runs in the learner's ranks: once before training, on shapes alone, and when the policy is exported.

Data flows from the layers of a module, a `LayerSource`, to (name, tensor) pairs of a folder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class Described(Protocol):
    """Name, dtype and full shape of a tensor of the module."""

    @property
    def name(self) -> str:
        """Name in the module."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of its elements."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Full shape, also where ranks hold parts."""
        ...


class LayerSource(Protocol):
    """Parameters of a module, one layer after another; `workers/engines/zero/weights.py`."""

    @property
    def num_layers(self) -> int:
        """Number of runs of parameters that are read together."""
        ...

    def layer(self, number: int) -> Sequence[tuple[str, Tensor]]:
        """Return the full tensors of one layer, on all ranks in step."""
        ...

    def layer_metadata(self, number: int) -> Sequence[Described]:
        """Describe the tensors of one layer, without communication."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """Tensor of a model folder, without its values.

    Worked example:
        file "model-00001-of-00002.safetensors"    dtype torch.bfloat16    shape (4096, 14336)
    """

    file: Path
    dtype: torch.dtype | None  # None for a type that no weight of a trained model has
    shape: tuple[int, ...]


def stored_tensors(folder: str | Path) -> dict[str, StoredTensor]:
    """Read the names, dtypes and shapes of a model folder from the headers of its files."""
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no mapping
                held = tensors.get_slice(name)
                found[name] = StoredTensor(
                    file=file,
                    dtype=DTYPES.get(held.get_dtype()),
                    shape=tuple(held.get_shape()),
                )
    return found


def stored_dtype(stored: Mapping[str, StoredTensor]) -> torch.dtype:
    """Return the dtype of most elements of a folder; float32 where none is known."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in stored.values():
        if tensor.dtype is not None:
            sizes[tensor.dtype] += torch.Size(tensor.shape).numel()
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


class FolderLayout:
    """Way from the tensors of a module to those of the folder that it was read from.

    Args:
        model: read from the folder.
        source: of all parameters of the model, merged with an adapter, in their own dtype.
        folder: of the model.
        dtype: of all exported weights; None gives each tensor the dtype that it has in the folder.

    Raises:
        ValueError: the model's tensors are not those of the folder: what would be written is
            another model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        source: LayerSource,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._model, self._source = model, source
        self._stored, self._dtype = stored_tensors(folder), dtype
        self._first_of = {
            _prefix(meta.name): number
            for number in reversed(range(source.num_layers))
            for meta in source.layer_metadata(number)
        }
        persistent = model.state_dict(keep_vars=True).keys()
        self._buffers = {
            name: buffer for name, buffer in model.named_buffers() if name in persistent
        }
        names = {
            name: shape
            for number in range(source.num_layers)
            for name, shape in self._shapes(number).items()
        }
        self._carried = self._compare(names)
        self.dtype = dtype or stored_dtype(self._stored)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the folder; a collective under ZeRO-3, in step on all ranks."""
        for number in range(self._source.num_layers):
            layer = dict(self._source.layer(number)) | self._buffers_of(number)
            for name, tensor in revert_weight_conversion(self._model, layer).items():
                yield name, tensor.to(self._dtype_of(name))
        for name in self._carried:
            with safe_open(self._stored[name].file, "pt") as tensors:
                yield name, tensors.get_tensor(name)

    def _dtype_of(self, name: str) -> torch.dtype:
        return self._dtype or self._stored[name].dtype or self.dtype

    def _shapes(self, number: int) -> dict[str, tuple[int, ...]]:
        """Return the folder's names and shapes of one layer, without its values."""
        layer: dict[str, Any] = {
            meta.name: torch.empty(meta.shape, dtype=meta.dtype, device="meta")
            for meta in self._source.layer_metadata(number)
        }
        layer |= {name: t.to("meta") for name, t in self._buffers_of(number).items()}
        converted = revert_weight_conversion(self._model, layer)
        return {name: tuple(tensor.shape) for name, tensor in converted.items()}

    def _buffers_of(self, number: int) -> dict[str, Tensor]:
        """Return the persistent buffers of one layer; of no layer: those that stand in none."""
        return {
            name: buffer
            for name, buffer in self._buffers.items()
            if self._first_of.get(_prefix(name), 0) == number
        }

    def _compare(self, names: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Hold exported names and shapes against the folder; return the names to carry along."""
        stored = {name: tensor.shape for name, tensor in self._stored.items()}
        ignored = [
            re.compile(pattern) for pattern in self._model._keys_to_ignore_on_load_unexpected or ()
        ]
        absent = sorted(stored.keys() - names.keys() - _tied_names(self._model))
        carried = [name for name in absent if any(rule.search(name) for rule in ignored)]
        faults = [f"{name} is lost" for name in absent if name not in carried]
        faults += [f"{name} is not in the folder" for name in sorted(names.keys() - stored.keys())]
        faults += [
            f"{name} is {shape} instead of {stored[name]}"
            for name, shape in sorted(names.items())
            if name in stored and stored[name] != shape
        ]
        if faults:
            raise ValueError(
                f"an export of {type(self._model).__name__} would not be the model of its folder: "
                f"{'; '.join(faults[:6])}{' ...' if len(faults) > 6 else ''}; use a folder that "
                "transformers writes (save_pretrained), or set trainer.export=false"
            )
        return carried


def _prefix(name: str) -> str:
    """Return a name up to its first number: the layer; "" outside the layers."""
    parts = name.split(".")
    numbers = (i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: next(numbers, -1) + 1])


def _tied_names(model: PreTrainedModel) -> set[str]:
    """List the second names of tied tensors, which a folder may or may not hold."""
    first: dict[int, str] = {}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied.add(name)
    return tied
