"""Low-rank factors beside the matrices of a mixture's experts, which transformers stacks.

transformers holds one matrix of all experts as one parameter W [E, out, in] and runs it as a
grouped product over the rows that the router sorted. The product of the factors is added there, row
by row: x W^T + scale (x A^T) B^T. peft's own way (`ParamWrapper`) adds B A to W in every forward
pass: autograd keeps that second stack of every layer, 16 bits round small updates away, and under
ZeRO-3, whose layers are whole only while they run, there is nothing to add to. Runs in the ranks of
the learner. Writes no file: `workers/engines/model/lora.py` writes the factors as peft does.

Legend: n tokens, k experts per token, S = n k rows sorted by expert, E experts, r rank.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.moe import _grouped_linear

HOLDER = "factors"  # the experts' submodule that holds what is added here
MATRICES = ("gate_up_proj", "up_proj", "down_proj")
ALIGNED = 8  # 16 bytes of 16-bit elements, which grouped products on GPUs ask of a row


class ExpertFactors(nn.Module):
    """Factors of one matrix of all experts: `forward(rows, ends)` -> scale (x A^T) B^T [S, out].

    A starts as that of a linear layer does in peft, B at zero.

    Args:
        weight: W [E, out, in], also where ranks hold parts of it.
        rank: r of A [E, r, in] and B [E, out, r].
        scale: of the product.
    """

    def __init__(self, weight: nn.Parameter, *, rank: int, scale: float) -> None:
        super().__init__()
        num_experts, out, width = _full_shape(weight)
        bound = 1.0 / math.sqrt(width)
        a = torch.empty(num_experts, rank, width).uniform_(-bound, bound)
        b = torch.zeros(num_experts, out, rank)
        self.lora_A = nn.Parameter(a.to(weight.device, weight.dtype))
        self.lora_B = nn.Parameter(b.to(weight.device, weight.dtype))
        self.scale = scale
        self.enabled = True

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the factors on or off; peft's layers have a method of this name."""
        self.enabled = enabled

    def forward(self, rows: Tensor, ends: Tensor) -> Tensor:
        """Compute the product of rows [S, in] whose experts end at `ends` [E]."""
        missing = -self.lora_A.shape[1] % ALIGNED  # rows and columns of zeros
        a, b = F.pad(self.lora_A, (0, 0, 0, missing)), F.pad(self.lora_B, (0, missing))
        return _grouped_linear(_grouped_linear(rows, a, ends), b, ends) * self.scale


def expert_stacks(model: nn.Module) -> dict[str, nn.Parameter]:
    """Map the name of each matrix of experts that factors can stand beside to its parameter.

    Those are matrices [E, out, in] of experts that run through transformers' own interface; other
    families write a forward pass of their own.
    """
    return {
        f"{name}.{leaf}" if name else leaf: parameter
        for name, module in model.named_modules()
        if hasattr(module, "has_gate") and getattr(module, "is_transposed", True) is False
        for leaf, parameter in module.named_parameters(recurse=False)
        if leaf in MATRICES and len(_full_shape(parameter)) == 3
    }


def attach_factors(experts: Any, leaves: list[str], *, rank: int, scale: float) -> None:
    """Put factors beside the named matrices of a module of experts, in place."""
    factors = {
        leaf: ExpertFactors(parameter, rank=rank, scale=scale)
        for leaf, parameter in experts.named_parameters(recurse=False)
        if leaf in leaves
    }
    experts.add_module(HOLDER, nn.ModuleDict(factors))
    experts.forward = functools.partial(_run, experts, experts.forward)


def _run(
    experts: Any,
    without: Callable[..., Tensor],
    hidden: Tensor,  # [n, H]
    chosen: Tensor,  # [n, k] int64
    weights: Tensor,  # [n, k]
) -> Tensor:
    """Run experts as transformers does, with the factors' products added; `without` runs them bare.

    A matrix without factors, and factors that are zero, give the bits of transformers' own grouped
    product.
    """
    active = {leaf: own for leaf, own in getattr(experts, HOLDER).items() if own.enabled}
    if not active:
        return without(hidden, chosen, weights)
    ids, order = torch.sort(chosen.reshape(-1))  # [S]
    num_experts = experts.num_experts
    bounds = torch.arange(num_experts, device=ids.device)
    ends = torch.searchsorted(ids, bounds, right=True, out_int32=True)  # [E]

    def product(leaf: str, rows: Tensor) -> Tensor:
        bias = getattr(experts, f"{leaf}_bias")[ids] if experts.has_bias else None
        out = _grouped_linear(rows, getattr(experts, leaf), ends, bias=bias)
        return out + active[leaf](rows, ends) if leaf in active else out

    rows = hidden[order // chosen.shape[-1]]
    if experts.has_gate:
        inner = experts._apply_gate(product("gate_up_proj", rows))
    else:
        inner = experts.act_fn(product("up_proj", rows))
    weighted = product("down_proj", inner) * weights.reshape(-1)[order, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return weighted[back].view(*chosen.shape, -1).sum(dim=1).to(hidden.dtype)


def _full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return the shape of a parameter, also where ranks hold parts of it (ZeRO-3)."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
