"""Slices of parameters that this rank holds, with the optimizer's state, under any stage.

A slice means: elements [offset, offset + count) of a flattened parameter are elements
[start, start + count) of a flat float32 tensor of this process, the one that the torch optimizer
steps. One record describes replicated parameters (stage 0), flat groups divided over ranks
(1 and 2) and sub-groups of partitions (3), so what is saved by one layout can be read by another.
Runs in every rank of learner and critic. No communication, no copy; only `spread_weights` exchanges
data with the other ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

WEIGHT = "weight"
NamedParameters = Sequence[tuple[str, nn.Parameter]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterSlice:
    """Slice of one parameter as it lies in this process.

    Worked example, ZeRO-1 on 2 ranks, a parameter of 128 elements that begins at 1000 in rank 0's
    flat group of 1064 elements: rank 0 has its first 64 elements, rank 1 the others.
        rank 0    offset 0     count 64    start 1000    replicated False
        rank 1    offset 64    count 64    start 0       replicated False

    Attributes:
        name: of the parameter.
        offset, count: elements of the flattened parameter.
        owner: tensor that holds them and that the optimizer steps, of any shape.
        start: index of the first of them in the flattened owner.
        replicated: every rank holds the whole parameter.
    """

    name: str
    offset: int
    count: int
    owner: Tensor
    start: int = 0
    replicated: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """View [count] of a tensor shaped as the owner."""
        return tensor.detach().view(-1)[self.start : self.start + self.count]

    def share(self, rank: int, world_size: int) -> "ParameterSlice":
        """Take the part that this rank writes, so that all ranks write every element once."""
        if not self.replicated:
            return self
        even = -(-self.count // world_size)
        first = min(self.count, rank * even)
        return ParameterSlice(
            name=self.name,
            offset=self.offset + first,
            count=min(even, self.count - first),
            owner=self.owner,
            start=self.start + first,
        )


def full_shape(parameter: nn.Parameter) -> list[int]:
    """Return the shape of the whole parameter, partitioned or not."""
    return list(getattr(parameter, "ds_shape", parameter.shape))


def torch_optimizer(engine: Any) -> torch.optim.Optimizer | None:
    """Return the optimizer that holds the state, or None where nothing trains.

    Raises:
        ValueError: an optimizer of DeepSpeed whose layout is not known here.
    """
    optimizer = getattr(engine, "optimizer", None)
    if isinstance(
        optimizer, DeepSpeedZeroOptimizer_Stage3 | DeepSpeedZeroOptimizer | BF16_Optimizer
    ):
        if getattr(optimizer, "swap_optimizer", False):
            raise ValueError(
                "optimizer state on NVMe can't be saved: offload it to host memory instead "
                "(learner.offload_optimizer=true)"
            )
        return optimizer.optimizer
    if optimizer is None or isinstance(optimizer, torch.optim.Optimizer):
        return optimizer
    if not hasattr(optimizer, "param_groups"):  # ZeRO-3 for inference: parameters only
        return None
    raise ValueError(
        f"state of a {type(optimizer).__name__} can't be saved; take torch_autocast and zenflow "
        "out of learner.deepspeed, and set model.dtype and model.param_dtype instead"
    )


def trained_parameters(engine: Any, named: NamedParameters) -> NamedParameters:
    """Select the parameters whose values a checkpoint holds.

    All that an optimizer steps, or all where none does. Frozen parameters of a policy that trains
    come from its model folder.
    """
    if torch_optimizer(engine) is None:
        return named
    return [(name, parameter) for name, parameter in named if parameter.requires_grad]


def held_slices(engine: Any, named: NamedParameters) -> list[ParameterSlice]:
    """List every slice of the trained parameters that this rank holds.

    Args:
        engine: of DeepSpeed, or None for a policy that only scores.
        named: all parameters of the model, under the names of a checkpoint.
    """
    optimizer = getattr(engine, "optimizer", None)
    trained = trained_parameters(engine, named)
    if isinstance(optimizer, BF16_Optimizer):
        return _flat_groups(optimizer.bf16_groups, optimizer.fp32_groups_flat_partition, trained)
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        owners = optimizer.single_partition_of_fp32_groups
        return _flat_groups(optimizer.bit16_groups, owners, trained)
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return _sub_groups(optimizer, trained)
    return [_plain(name, parameter) for name, parameter in trained]


def _flat_groups(
    groups: Sequence[Sequence[Any]], owners: Sequence[Tensor], named: NamedParameters
) -> list[ParameterSlice]:
    """List slices under ZeRO 1 and 2: one flat tensor a group, divided over ranks anywhere."""
    names = {id(parameter): name for name, parameter in named}
    slices = []
    for group, owner in zip(groups, owners, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is None:  # lies in other ranks' parts
                continue
            here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            slices.append(
                ParameterSlice(
                    name=names[id(parameter)],
                    offset=here.start,
                    count=here.numel,
                    owner=owner,
                    start=there.start,
                )
            )
    return slices


def _sub_groups(
    optimizer: DeepSpeedZeroOptimizer_Stage3, named: NamedParameters
) -> list[ParameterSlice]:
    """List slices under ZeRO 3.

    Every parameter is divided evenly, its parts one after another in a sub-group.
    """
    names = {id(parameter): name for name, parameter in named}
    slices = []
    for number, group in enumerate(optimizer.fp16_groups):
        rank = dist.get_rank(group=optimizer._get_sub_group_process_group(number))
        owner = optimizer.fp32_partitioned_groups_flat[number]
        for parameter in group:
            _, start, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            offset = min(rank * size, parameter.ds_numel)
            slices.append(
                ParameterSlice(
                    name=names[id(parameter)],
                    offset=offset,
                    count=min(size, parameter.ds_numel - offset),
                    owner=owner,
                    start=start,
                )
            )
    return slices


def _plain(name: str, parameter: nn.Parameter) -> ParameterSlice:
    """Describe a replicated parameter, or a partition of ZeRO 3 that nothing trains."""
    held: Any = getattr(parameter, "ds_tensor", None)
    if held is None:
        return ParameterSlice(
            name=name, offset=0, count=parameter.numel(), owner=parameter, replicated=True
        )
    numel: int = parameter.ds_numel  # type: ignore[attr-defined]
    offset = min(dist.get_rank() * held.ds_numel, numel)
    return ParameterSlice(
        name=name, offset=offset, count=min(held.ds_numel, numel - offset), owner=held
    )


def spread_weights(engine: Any) -> None:
    """Copy the optimizer's tensors into the model that computes; collective."""
    optimizer = getattr(engine, "optimizer", None)
    if isinstance(optimizer, DeepSpeedZeroOptimizer | BF16_Optimizer):
        optimizer.update_lp_params()
    elif isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer.checkpoint_event_prologue()
        for number in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
        optimizer.checkpoint_event_epilogue()
