"""Policy with a low-rank adapter as a stream of tensors: merged into its base, or by itself.

Data flows from frozen weights W [out, in] and trained factors A [r, in], B [out, r], or those of E
experts in one tensor (W [E, out, in]), to (name, tensor) pairs:

    merged    W + (alpha / r) B A, summed in float32, under the base model's names
    adapter   A and (alpha / r) B under peft's names, for engines that keep W themselves

Engines load W from the folder that the learner started from: what no adapter touches, or what is
frozen, is not sent.
Runs in the learner's ranks. Not a transport: nothing is sent here, and the base is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from workers.engines.model.lora import (
    ADAPTER,
    Factors,
    adapted_weights,
    adapter_name,
    base_name,
    lora_layers,
)
from workers.engines.model.lora_settings import LoraSettings
from workers.engines.zero.weights import Shard, ZeroSource, gathered

Rename = Callable[[str], str | None]


def published_name(module: nn.Module, adapter: LoraSettings | None) -> Rename | None:
    """Choose the parameters that a publication of `module` delivers, and their names.

    Derived from the module alone. None stands for everything, as it is called. Frozen parameters
    are in the engines already. Engines fuse siblings (q, k and v) into one matrix and reload it
    whole, so a publication has every parameter of a block in which one layer trains or is adapted.
    """
    if adapter is None:
        return _trained_name(module)
    if adapter.publish == "adapter":
        return adapter_name
    blocks = {_block(name) for name in adapted_weights(module)}

    def merged(name: str) -> str | None:
        name = base_name(name)
        return name if adapter_name(name) is None and _block(name) in blocks else None

    return merged


def _trained_name(module: nn.Module) -> Rename | None:
    named = list(module.named_parameters())
    blocks = {_block(name) for name, parameter in named if parameter.requires_grad}
    if not blocks or all(_block(name) in blocks for name, _ in named):
        return None
    return lambda name: name if _block(name) in blocks else None


def _block(name: str) -> str:
    """Return the name of the module that holds a parameter's layer."""
    return name.rpartition(".")[0].rpartition(".")[0]


def publication_source(
    module: nn.Module,
    adapter: LoraSettings | None,
    *,
    rank: int,
    world_size: int,
    dtype: torch.dtype,
) -> ZeroSource:
    """Build the source that a publication reads: what trains of a module, or of its adapter."""
    kind = ZeroSource
    if adapter is not None:
        kind = ScaledSource if adapter.publish == "adapter" else MergedSource
    rename = published_name(module, adapter)
    return kind(module, rank=rank, world_size=world_size, dtype=dtype, rename=rename)


def export_source(
    module: nn.Module, *, rank: int, world_size: int, dtype: torch.dtype | None = None
) -> ZeroSource:
    """Build a source of every parameter of the policy, under the base model's names."""

    def rename(name: str) -> str | None:
        return base_name(name) if adapter_name(name) is None else None

    return MergedSource(module, rank=rank, world_size=world_size, dtype=dtype, rename=rename)


class MergedSource(ZeroSource):
    """Base weights with the adapter's product added on the way out."""

    def __init__(self, module: nn.Module, **arguments: Any) -> None:
        super().__init__(module, **arguments)
        self._adapted = adapted_weights(module)

    def shards(self) -> Iterator[Shard]:
        """See `ZeroSource.shards`; under ZeRO-3 the small factors are gathered, a collective."""
        for group in self._layers():
            merged = []
            with gathered(self._factors(group)):
                for name, parameter in group:
                    offset, flat = self._held(name, parameter)
                    merged.append(
                        Shard(name=name, offset=offset, flat=self._merged(name, offset, flat))
                    )
            yield from (shard for shard in merged if shard.flat.numel())

    def _gathered(self, group: list[tuple[str, nn.Parameter]]) -> list[tuple[str, Tensor]]:
        with gathered([parameter for _, parameter in group] + self._factors(group)):
            found = []
            for name, parameter in group:
                if name in self._adapted:
                    flat = self._merged(name, 0, parameter.detach().reshape(-1))
                    found.append((name, self._cast(flat.view(parameter.shape))))
                else:
                    found.append((name, self._whole(parameter)))
            return found

    def _factors(self, group: list[tuple[str, nn.Parameter]]) -> list[nn.Parameter]:
        adapted = [self._adapted[name] for name, _ in group if name in self._adapted]
        return [factor for own in adapted for factor in (own.a, own.b)]

    def _merged(self, name: str, offset: int, flat: Tensor) -> Tensor:
        """Merge elements [offset, offset + n) of a weight, from those of the base, `flat` [n]."""
        factors = self._adapted.get(name)
        if factors is None or not flat.numel():
            return flat
        return _with_product(factors, offset, flat)


def _with_product(factors: Factors, offset: int, flat: Tensor) -> Tensor:
    """Return elements [offset, offset + n) of W + scale B A in float32, one expert at a time."""
    a, b = (factor.detach().float() for factor in (factors.a, factors.b))
    a, b = a.view(-1, *a.shape[-2:]), b.view(-1, *b.shape[-2:])  # [E, r, in], [E, out, r]
    width, height = a.shape[-1], b.shape[-2]
    merged = flat.to(torch.float32, copy=True)
    first, last = offset // width, -(-(offset + flat.numel()) // width)  # rows that it touches
    for expert in range(first // height, -(-last // height)):
        low = max(first, expert * height)
        high = min(last, (expert + 1) * height)
        product = (b[expert, low - expert * height : high - expert * height] @ a[expert]).view(-1)
        start = low * width - offset  # of the product in `merged`; negative where a row is divided
        own = product[max(0, -start) : flat.numel() - start]
        merged[max(0, start) : max(0, start) + own.numel()].add_(own, alpha=factors.scale)
    return merged


class ScaledSource(ZeroSource):
    """Adapter's factors A and (alpha / r) B: the engine needs no scale of its own."""

    def __init__(self, module: nn.Module, **arguments: Any) -> None:
        super().__init__(module, **arguments)
        self._scale = {
            adapter_name(f"{name}.lora_B.{ADAPTER}.weight"): layer.scaling[ADAPTER]
            for name, layer in lora_layers(module).items()
        }

    def shards(self) -> Iterator[Shard]:
        """See `ZeroSource.shards`."""
        for shard in super().shards():
            flat = shard.flat * self._scale.get(shard.name, 1.0)
            yield Shard(name=shard.name, offset=shard.offset, flat=flat)

    def _gathered(self, group: list[tuple[str, nn.Parameter]]) -> list[tuple[str, Tensor]]:
        return [
            (name, tensor * self._scale.get(name, 1.0)) for name, tensor in super()._gathered(group)
        ]
