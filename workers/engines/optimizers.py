"""The torch optimizer that DeepSpeed partitions, and moving its state off the device and back."""

from typing import Any

import torch
from torch import Tensor, nn

from workers.engines.packed_model import PackedModel
from workers.engines.zero_settings import OptimizerSettings


def build_optimizer(settings: OptimizerSettings, policy: PackedModel) -> torch.optim.Optimizer:
    """Matrices decay, vectors (norms and biases) do not."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for _, parameter in policy.hf_named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        groups[len(shape) > 1].append(parameter)
    parameters = [
        {"params": members, "weight_decay": settings.weight_decay if decays else 0.0}
        for decays, members in groups.items()
        if members
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr)
    return torch.optim.AdamW(
        parameters, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
    )


def move_states(engine: Any, device: torch.device, *, stage: int) -> None:
    """Move optimizer (and, on stage 3, gradient) state of a DeepSpeed engine to `device`."""
    if stage == 3:
        if device.type == "cpu":
            engine.offload_states()
        else:
            engine.reload_states()
        return
    for state in engine.optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim():
                state[key] = value.to(device)
    torch.cuda.empty_cache()
