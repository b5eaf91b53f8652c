"""Routers of a mixture of experts: how evenly they divide a micro-batch, and a loss for more of it.

Routers are found by the table in which transformers names their outputs. Runs in the learner's
ranks, around the forward pass. Changes no routing.

Legend: n tokens that this rank computes, E experts, k experts that a token passes.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

RECORDED = "router_logits"  # transformers' name of what a router puts out


@dataclass(kw_only=True)
class Routings:
    """Outputs of all routers in one forward pass, layer by layer.

    Attributes:
        logits: [n, E] each, with gradient.
        chosen: [n, k] each, the experts that a token passes.
    """

    logits: list[Tensor] = field(default_factory=list)
    chosen: list[Tensor] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.logits)

    def shares(self) -> Tensor:
        """Return the share of the (token, expert) pairs that each expert takes [layers, E]."""
        shares = []
        for logits, chosen in zip(self.logits, self.chosen, strict=True):
            counts = logits.new_zeros(logits.shape[-1], dtype=torch.float32)
            taken = chosen.reshape(-1)
            counts.scatter_add_(0, taken, torch.ones_like(taken, dtype=torch.float32))
            shares.append(counts / taken.numel())
        return torch.stack(shares)

    def load(self) -> Tensor:
        """Return the busiest expert's share over an even one, mean over layers: 1 to E / k."""
        shares = self.shares()
        return shares.max(dim=1).values.mean() * shares.shape[1]

    def balance(self) -> Tensor:
        """Return the balancing loss of Switch Transformers, mean over layers; 1 where even.

        E * sum over experts of f_e P_e (2101.03961, equations 4 to 6): f_e is the share of expert
        e of the pairs, without gradient, P_e its mean probability. transformers' own is k times it.
        """
        means = [logits.float().softmax(dim=-1).mean(dim=0) for logits in self.logits]
        shares = self.shares()
        return (shares * torch.stack(means)).sum(dim=1).mean() * shares.shape[1]


def routers(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """List the routers of a model, and the place of the logits in what each returns."""
    found: dict[int, tuple[nn.Module, int]] = {}
    for part in model.modules():
        tables: dict[str, Any] = getattr(part, "_can_record_outputs", None) or {}
        if not isinstance(part, PreTrainedModel) or RECORDED not in tables:
            continue
        entries = tables[RECORDED] if isinstance(tables[RECORDED], list) else [tables[RECORDED]]
        for entry in entries:
            kind, place = getattr(entry, "target_class", entry), getattr(entry, "index", 0)
            suffix = getattr(entry, "layer_name", None) or ""
            for name, module in part.named_modules():
                if isinstance(module, kind) and name.endswith(suffix):
                    found[id(module)] = module, place
    return list(found.values())


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[Routings]:
    """Collect the outputs of all routers inside the block; nothing for a dense model."""
    routings = Routings()
    config: Any = getattr(model, "config", None)
    k = getattr(config and config.get_text_config(), "num_experts_per_tok", None) or 1

    def keep(place: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            values = output if isinstance(output, tuple) else (output,)
            logits: Tensor = values[place].flatten(0, -2)
            indices = [v for v in values if isinstance(v, Tensor) and v.dtype == torch.int64]
            chosen = indices[0] if indices else logits.topk(k, dim=-1).indices
            routings.logits.append(logits)
            routings.chosen.append(chosen.flatten(0, -2))

        return hook

    hooks = [module.register_forward_hook(keep(place)) for module, place in routers(model)]
    try:
        yield routings
    finally:
        for hook in hooks:
            hook.remove()
