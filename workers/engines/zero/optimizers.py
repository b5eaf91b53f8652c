"""Torch optimizer that DeepSpeed partitions, and the moves of its state off the device and back.

Runs in every rank that trains. Takes no step: `rank.py` does.
"""

from typing import Any

import torch
from torch import Tensor, nn

from workers.engines.model.packed_model import PackedModel
from workers.engines.zero.settings import OptimizerSettings

#: Where DeepSpeed keeps the float32 partitions that it steps, by ZeRO stage.
MASTER_WEIGHTS = {
    1: "single_partition_of_fp32_groups",
    2: "single_partition_of_fp32_groups",
    3: "fp32_partitioned_groups_flat",
}


def build_optimizer(settings: OptimizerSettings, policy: PackedModel) -> torch.optim.Optimizer:
    """Build the optimizer; matrices decay, vectors (norms and biases) do not."""
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
    """Move the tensors that only an optimizer step needs to `device`: its state and master weights.

    DeepSpeed moves them by itself for its own FusedAdam alone; its gradient buffer of stage 3 it
    does move. Parameters stay where they are.
    """
    if stage == 3:
        from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum

        if device.type == "cpu":
            buffers = [OffloadStateTypeEnum.lp_grads, OffloadStateTypeEnum.contiguous_grad_buffer]
            engine.offload_states(include=buffers, pin_memory=False)
        else:
            engine.reload_states()
    for master in getattr(engine.optimizer, MASTER_WEIGHTS.get(stage, ""), []):
        master.data = master.data.to(device)
    for state in engine.optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim():
                state[key] = value.to(device)
