"""Learner's weights as a stream: whole tensors, or the slices that this rank holds.

Data flows from the parameters of a Hugging Face module, replicated (ZeRO 0 to 2) or partitioned
(ZeRO 3), to (name, tensor) pairs in the engine's dtype and under the engine's names. Structurally a
`vllm...WeightSource`, without importing vLLM. Runs in the learner's ranks, and in those of a role
that copies the policy. Not a transport: nothing is sent here.

Tied parameters appear once, under the first name; vLLM ties its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterMeta:
    """Name, dtype and full shape of one tensor as it is sent.

    Worked example:
        name "model.norm.weight"    dtype torch.bfloat16    shape (576,)
        num_elements 576    num_bytes 1152
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Elements of the full tensor."""
        return int(torch.Size(self.shape).numel())

    @property
    def num_bytes(self) -> int:
        """Bytes of the full tensor."""
        return self.num_elements * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Slice of one tensor: `flat` [n] belongs at `offset` (elements) of the flattened tensor."""

    name: str
    offset: int
    flat: Tensor


def expected_names(
    module: nn.Module, rename: Callable[[str], str | None] | None = None
) -> list[str]:
    """List the names of all tensors that a publication of the module must contain.

    Derived from the module alone, so that it can be held against what a source really sent.
    """
    return [name for name, _ in _named(module, rename)]


def gathered(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Any]:
    """Make parameters whole inside the block; a collective where ZeRO-3 has divided them.

    They are views of a buffer that is freed on leaving: clone what must outlive the block.
    """
    partitioned = [parameter for parameter in parameters if _is_partitioned(parameter)]
    stack = ExitStack()
    stack.enter_context(torch.no_grad())
    if partitioned:
        import deepspeed

        stack.enter_context(deepspeed.zero.GatheredParameters(partitioned))
    return stack


class ZeroSource:
    """Weights of a module under any ZeRO stage.

    Args:
        module: the Hugging Face model inside the DeepSpeed engine (`engine.module`).
        rank: this rank among those that hold the same model.
        world_size: their number.
        dtype: of the engine; None sends the parameters' own.
        rename: parameter name to the name the engine loads, or to None to leave it out; without
            one everything keeps its name.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        rank: int = 0,
        world_size: int = 1,
        dtype: torch.dtype | None = None,
        rename: Callable[[str], str | None] | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        self.rank = rank
        self.world_size = world_size
        self._dtype = dtype
        self._parameters = _named(module, rename)

    def metadata(self) -> list[ParameterMeta]:
        """Describe what iteration yields, without communication."""
        return [self._described(name, parameter) for name, parameter in self._parameters]

    def layer_metadata(self, number: int) -> list[ParameterMeta]:
        """Describe what `layer` returns, without communication."""
        return [self._described(name, parameter) for name, parameter in self._layers()[number]]

    def _described(self, name: str, parameter: nn.Parameter) -> ParameterMeta:
        dtype = self._dtype or parameter.dtype
        return ParameterMeta(name=name, dtype=dtype, shape=_full_shape(parameter))

    @property
    def num_layers(self) -> int:
        """Number of runs of parameters that are gathered together: decoder layers, and the rest."""
        return len(self._layers())

    def _layers(self) -> list[list[tuple[str, nn.Parameter]]]:
        by_layer = groupby(self._parameters, key=lambda item: _layer(item[0]))
        return [list(members) for _, members in by_layer]

    def layer(self, number: int) -> list[tuple[str, Tensor]]:
        """Return the full tensors of one layer; a collective under ZeRO-3, in step on all ranks."""
        return self._gathered(self._layers()[number])

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every full tensor; a collective under ZeRO-3, in the same order on all ranks."""
        for number in range(self.num_layers):
            yield from self.layer(number)

    def shards(self) -> Iterator[Shard]:
        """Yield this rank's slices; over all ranks every element appears exactly once.

        No communication: ZeRO-3 partitions as they lie, replicated parameters divided evenly.

        Raises:
            RuntimeError: a partition that is not in memory (offloaded to disk), or not divided over
                all ranks.
        """
        for name, parameter in self._parameters:
            offset, flat = self._held(name, parameter)
            if flat.numel():
                yield Shard(name=name, offset=offset, flat=flat)

    def _gathered(self, group: list[tuple[str, nn.Parameter]]) -> list[tuple[str, Tensor]]:
        with gathered([parameter for _, parameter in group]):
            return [(name, self._whole(parameter)) for name, parameter in group]

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        """Return a full tensor that outlives a gather."""
        tensor = self._cast(parameter.detach())
        return tensor.clone() if _is_partitioned(parameter) else tensor

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype).contiguous() if self._dtype else tensor.contiguous()

    def _held(self, name: str, parameter: nn.Parameter) -> tuple[int, Tensor]:
        """Return this rank's slice: its offset in the flattened tensor, and the slice [n]."""
        if _is_partitioned(parameter):
            return self._partition(name, parameter)
        full = parameter.detach().reshape(-1)  # [n]
        share = -(-full.numel() // self.world_size)
        offset = self.rank * share
        return offset, full[offset : offset + share]

    def move(self, name: str, target: Tensor, share: float) -> None:
        """Change the module's parameter: (1 - share) own + share `target`; 1 copies it to the bit.

        No communication: every rank changes what it holds. For parameters that no optimizer steps,
        which keeps copies of its own.

        Args:
            name: as iteration yields it.
            target: full tensor, on any device.
            share: of the target, in (0, 1].

        Raises:
            ValueError: no such parameter, or one of another shape.
        """
        parameter = dict(self._parameters).get(name)
        if parameter is None or _full_shape(parameter) != tuple(target.shape):
            fault = "is missing" if parameter is None else f"has shape {_full_shape(parameter)}"
            raise ValueError(
                f"{name} {fault} here and {tuple(target.shape)} in the policy that is copied: both "
                "must be the same model"
            )
        flat = target.reshape(-1)  # [n]
        if _is_partitioned(parameter):
            offset, held = self._partition(name, parameter)
            _blend(held, flat[offset : offset + held.numel()], share)
        # DeepSpeed may keep small partitioned parameters whole from one pass to the next.
        if parameter.numel() == flat.numel():
            _blend(parameter.detach().view(-1), flat, share)

    def _partition(self, name: str, parameter: Any) -> tuple[int, Tensor]:
        held = parameter.ds_tensor  # [ds_tensor.ds_numel], the last rank's padded at the end
        if held.numel() != held.ds_numel or held.ds_numel == 0:
            raise RuntimeError(
                f"the partition of {name} is not in memory ({held.numel()} of {held.ds_numel} "
                f"elements): parameter offload to NVMe cannot be published without a gather"
            )
        if held.ds_numel * self.world_size < parameter.ds_numel:
            raise RuntimeError(
                f"{name} is divided into pieces of {held.ds_numel} elements, too few for "
                f"{self.world_size} ranks: rank/world_size must be those of the ZeRO-3 group"
            )
        offset = self.rank * held.ds_numel
        count = max(0, min(held.ds_numel, parameter.ds_numel - offset))
        return offset, held.detach().view(-1)[:count]


def _named(
    module: nn.Module, rename: Callable[[str], str | None] | None
) -> list[tuple[str, nn.Parameter]]:
    found = module.named_parameters(remove_duplicate=True)
    named = [(rename(name) if rename else name, parameter) for name, parameter in found]
    return [(name, parameter) for name, parameter in named if name is not None]


def _blend(held: Tensor, target: Tensor, share: float) -> None:
    """Write (1 - share) held + share target into `held` [n]."""
    there = target.to(held.device, held.dtype)
    if share == 1.0:
        held.copy_(there)
    else:
        held.lerp_(there, share)


def _is_partitioned(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_tensor")


def _full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _layer(name: str) -> str:
    """Return the prefix up to the first index: one decoder layer; "" outside the layers."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return ""
