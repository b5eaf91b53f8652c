"""Search for live weights of a vLLM model that are not the ones that arrived.

Kernels keep packed copies that no parameter shows, so linear layers are compared by what they
compute: their output on a fixed random input against `F.linear` with the received weight.
Other parameters are compared directly. Only for engines of one worker, which hold whole tensors.
Runs inside vLLM's workers, after a probe that failed. Repairs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
)

from workers.weight_sync.fingerprint import Fingerprint

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


@torch.no_grad()
def stale_weights(model: nn.Module, received: Mapping[str, Tensor]) -> dict[str, str]:
    """Name received tensors that the live model does not use.

    Args:
        model: a vLLM model in one worker.
        received: full tensors by checkpoint name.
    """
    packed: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {}) or {}
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, LinearBase | ParallelLMHead):
            if isinstance(getattr(module, "quant_method", None), _UNPACKED):
                found |= _stale_linear(path, module, packed, received)
        else:
            for name, parameter in module.named_parameters(path, recurse=False):
                found |= _stale_plain(name, parameter, received)
    return found


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
