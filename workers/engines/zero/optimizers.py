"""Torch optimizer that DeepSpeed partitions, and the moves of its state off the device and back.

Runs in every rank that trains. Takes no step: `rank.py` does.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workers.engines.model.packed_model import PackedModel
from workers.engines.zero.settings import OptimizerSettings

# Where DeepSpeed's optimizers keep the float32 partitions that they step: the one of bfloat16
# weights on stage 1, those of stages 1 and 2, and that of stage 3.
MASTER_WEIGHTS = (
    "fp32_groups_flat_partition",
    "single_partition_of_fp32_groups",
    "fp32_partitioned_groups_flat",
)


def build_optimizer(settings: OptimizerSettings, policy: PackedModel) -> torch.optim.Optimizer:
    """Build the optimizer; matrices decay, vectors (norms and biases) do not.

    Frozen parameters are left out.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for _, parameter in policy.hf_named_parameters():
        if not parameter.requires_grad:
            continue
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


def fit_bucket(config: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return DeepSpeed's `config` with a bucket that holds no more than all gradients together.

    DeepSpeed allocates the bucket whole, 200 MB in float32, of which the gradients of an adapter
    may fill a hundredth.
    """
    trained = sum(
        getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves empty parameters behind
        for members in optimizer.param_groups
        for parameter in members["params"]
    )
    zero = config["zero_optimization"]
    size = min(int(zero["reduce_bucket_size"]), trained)
    return {**config, "zero_optimization": {**zero, "reduce_bucket_size": size}}


def move_states(engine: Any, device: torch.device, *, stage: int) -> None:
    """Move the tensors that only an optimizer step needs to `device`: its state and master weights.

    DeepSpeed moves them by itself in stage 3 and for its own FusedAdam alone; its gradient buffer
    of stage 3 it does move. Parameters stay where they are.
    """
    if stage == 3:
        from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum

        if device.type == "cpu":
            buffers = [OffloadStateTypeEnum.lp_grads, OffloadStateTypeEnum.contiguous_grad_buffer]
            engine.offload_states(include=buffers, pin_memory=False)
        else:
            engine.reload_states()
    states = (value for state in engine.optimizer.state.values() for value in state.values())
    _move(
        [
            *master_weights(engine),
            *(value for value in states if isinstance(value, Tensor) and value.dim()),
            *(_fragments(engine.module) if stage in (1, 2) else ()),
        ],
        device,
    )


def master_weights(engine: Any) -> list[Tensor]:
    """Return the float32 partitions that DeepSpeed steps; none where it steps the parameters."""
    found = (getattr(engine.optimizer, name, None) for name in MASTER_WEIGHTS)
    return [tensor for tensors in found for tensor in tensors or ()]


def _fragments(module: nn.Module) -> Iterator[Tensor]:
    """Yield the views of master weights and moments that ZeRO 1 and 2 keep at every parameter."""
    for parameter in module.parameters():
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:
            yield mapping.hp_fragment
            yield from (mapping.optim_fragment or {}).values()


def _move(tensors: Sequence[Tensor], device: torch.device) -> None:
    """Move tensors to `device`; those that share memory share the new memory too."""
    moved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
    for tensor in tensors:
        here = tensor.untyped_storage()
        if here.data_ptr() not in moved:
            there = torch.UntypedStorage(here.nbytes(), device=device).copy_(here)
            moved[here.data_ptr()] = here, there  # kept: the address of freed memory comes again
        view = torch.empty(0, dtype=tensor.dtype, device=device)
        view.set_(
            moved[here.data_ptr()][1], tensor.storage_offset(), tensor.size(), tensor.stride()
        )
        tensor.data = view
