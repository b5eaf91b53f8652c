"""Search for live weights of a vLLM model that are not the ones that arrived.

After every publication the tensors that a worker holds in the layout of a checkpoint are
fingerprinted where the kernels read them (`live_blocks`): on GPUs these are all of an unquantised
model. One of several tensor-parallel workers holds a block of each tensor, and the fingerprints of
the blocks add up to the whole tensor's.

vLLM's modules may have other names than a checkpoint's tensors, as those of vision-language models
do; names are mapped as vLLM maps them where it loads (`checkpoint_names`).

After a probe that failed, more is looked at (`stale_weights`). Kernels keep packed copies that no
parameter shows, so linear layers are compared by what they compute: their output on a fixed random
input against `F.linear` with the received weight. Other parameters are compared directly. Only for
engines of one worker, which hold whole tensors. Runs inside vLLM's workers. Repairs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from workers.weight_sync.fingerprint import Block, Fingerprint, fingerprint_block

_UNPACKED = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
_RELATIVE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def unlike_expected(
    received: Mapping[str, Fingerprint], expected: Mapping[str, Sequence[int]]
) -> dict[str, str]:
    """Name tensors that did not arrive, or arrived with other bytes than expected."""
    found: dict[str, str] = {}
    for name, value in expected.items():
        if name not in received:
            found[name] = "did not arrive"
        elif tuple(value) != tuple(received[name]):
            found[name] = "arrived with other bytes than were sent"
    return found


def checkpoint_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Map the names that a vLLM model gives to tensors to those by which the tensors arrived.

    Args:
        model: of vLLM.
        names: of the tensors that arrived.
    """
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return {name: name for name in names}
    rename = mapper.get_rename_mapper().map_name
    return {rename(name) or name: name for name in names}


@torch.no_grad()
def live_blocks(model: nn.Module, names: Iterable[str]) -> dict[str, Block]:
    """Fingerprint what this worker computes with, by checkpoint name.

    Left out is what no parameter shows: quantised layers, and those that a CPU kernel has packed.

    Args:
        model: of vLLM.
        names: of the tensors of the last publication; other tensors keep vLLM's names.
    """
    arrived = checkpoint_names(model, names)
    packed: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {}) or {}
    found: dict[str, Block] = {}
    for path, module in model.named_modules():
        for name, part, row, column, num_columns in _live_parts(path, module, packed):
            block = fingerprint_block(
                part if part.dim() == 2 else part.view(1, -1),
                row=row if part.dim() == 2 else 0,
                column=column if part.dim() == 2 else row,
                num_columns=num_columns,
            )
            if block is not None:
                found[arrived.get(name, name)] = block
    return found


#: Checkpoint name, this worker's part [r, c] or [r], its first row and column, whole columns.
_Part = tuple[str, Tensor, int, int, int]


def _live_parts(
    path: str, module: nn.Module, packed: Mapping[str, Sequence[str]]
) -> Iterator[_Part]:
    """Yield the tensors that a module itself holds in the layout of a checkpoint."""
    if isinstance(module, LinearBase | VocabParallelEmbedding):
        if not isinstance(getattr(module, "quant_method", None), _UNPACKED):
            return
        looked_up = isinstance(module, VocabParallelEmbedding) and not isinstance(
            module, ParallelLMHead
        )
        if not looked_up and getattr(module, "cpu_linear", F.linear) is not F.linear:
            return  # the kernel has a packed copy
        if isinstance(module, VocabParallelEmbedding):
            indices = module.shard_indices
            begin, end = indices.org_vocab_start_index, indices.org_vocab_end_index
            rows = module.weight[: end - begin]  # vLLM pads the vocabulary
            yield f"{path}.weight", rows, begin, 0, rows.shape[1]
        else:
            yield from _linear_parts(path, module, packed)
        return
    for name, parameter in module.named_parameters(path, recurse=False):
        if parameter.dim() == 1:
            yield name, parameter, 0, 0, parameter.numel()


def _linear_parts(path: str, module: Any, packed: Mapping[str, Sequence[str]]) -> Iterator[_Part]:
    weight, bias = module.weight, getattr(module, "bias", None)
    if isinstance(module, RowParallelLinear):
        column = module.tp_rank * module.input_size_per_partition
        yield f"{path}.weight", weight, 0, column, module.input_size
        if bias is not None:
            yield f"{path}.bias", bias, 0, 0, bias.numel()
        return
    prefix, _, leaf = path.rpartition(".")
    stem = f"{prefix}." if prefix else ""
    names = packed.get(leaf, [leaf])
    sizes = module.output_partition_sizes
    if len(names) != len(sizes):
        return  # not the layout of this model's checkpoint
    shares = module.tp_size if isinstance(module, ColumnParallelLinear) else 1
    begin = 0
    for place, (name, size) in enumerate(zip(names, sizes, strict=True)):
        # Few heads of keys and values: several workers hold copies of one.
        copies = getattr(module, "num_kv_head_replicas", 1) if place else 1
        own = module.tp_rank // copies if shares > 1 else 0
        rows = weight[begin : begin + size]
        yield f"{stem}{name}.weight", rows, own * size, 0, rows.shape[1]
        if bias is not None:
            whole = size * shares // copies
            yield f"{stem}{name}.bias", bias[begin : begin + size], own * size, 0, whole
        begin += size


@torch.no_grad()
def stale_weights(model: nn.Module, received: Mapping[str, Tensor]) -> dict[str, str]:
    """Name received tensors that the live model does not use.

    Args:
        model: a vLLM model in one worker.
        received: full tensors by checkpoint name.
    """
    packed: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {}) or {}
    arrived = checkpoint_names(model, received)
    theirs = {name: received[own] for name, own in arrived.items()}
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, LinearBase | ParallelLMHead):
            if isinstance(getattr(module, "quant_method", None), _UNPACKED):
                found |= _stale_linear(path, module, packed, theirs)
        else:
            for name, parameter in module.named_parameters(path, recurse=False):
                found |= _stale_plain(name, parameter, theirs)
    return {arrived[name]: reason for name, reason in found.items()}


def _stale_linear(
    path: str,
    module: Any,
    packed: Mapping[str, Sequence[str]],
    received: Mapping[str, Tensor],
) -> dict[str, str]:
    prefix, _, leaf = path.rpartition(".")
    stem = f"{prefix}." if prefix else ""
    names = [f"{stem}{part}.weight" for part in packed.get(leaf, [leaf])]
    reason = f"arrived, but {path} computes with other weights"
    if isinstance(module, ParallelLMHead) and names[0] not in received:
        tied = [name for name in received if name.endswith("embed_tokens.weight")]
        names = tied[:1]
        reason = f"arrived, but the tied head {path} computes with other weights"
    if not names or any(name not in received for name in names):
        return {}  # what did not arrive is named by `unlike_expected`
    weights = [received[name] for name in names]  # each [out_i, in]
    device = next((p.device for p in module.parameters()), weights[0].device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, weights[0].shape[1], generator=generator).to(device, weights[0].dtype)
    live = module.quant_method.apply(module, x, None).float()
    found: dict[str, str] = {}
    begin = 0
    for name, weight in zip(names, weights, strict=True):
        wanted = F.linear(x, weight.to(device)).float()  # [4, out_i]
        part = live[:, begin : begin + weight.shape[0]]
        begin += weight.shape[0]
        gap = (part - wanted).abs().max()
        if not gap <= _RELATIVE[weight.dtype] * wanted.abs().max():
            found[name] = reason
    return found


def _stale_plain(
    name: str, parameter: nn.Parameter, received: Mapping[str, Tensor]
) -> dict[str, str]:
    wanted = received.get(name)
    if wanted is None or parameter.dim() != wanted.dim():
        return {}
    live = parameter[: wanted.shape[0]]  # vLLM pads the vocabulary
    if live.shape == wanted.shape and torch.equal(live, wanted.to(live.device, live.dtype)):
        return {}
    return {name: "arrived, but the live parameter differs"}
