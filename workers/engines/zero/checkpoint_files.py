"""ZeRO engine's part of a checkpoint: its content, and how it is taken, written and read.

    engine.json              the model's parameters, the optimizer's name, progress; by rank 0
    rank_00000.safetensors   this rank's slices of weights and optimizer state, its random state

Taking a snapshot copies this rank's slices to host memory: no communication, nothing gathered.
Writing it needs the engine no more and may happen in another thread. Reading fills whatever slices
the present layout wants, so the ZeRO stage and the number of ranks may be others than when it was
saved; with the same ones training goes on to the bit. Frozen parameters are not in it: they come
from the model folder.

Runs in every rank of learner and critic. Does not check that the folder as a whole is complete, nor
its hashes and its name: the driver does.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workers.data.durable_files import FileRecord, sync_folder, write_file
from workers.data.random_state import random_state, set_random_state
from workers.data.results import StepCounts
from workers.engines.model.packed_model import PackedModel
from workers.engines.zero.settings import ZeroSettings
from workers.engines.zero.shard_files import ShardReader, piece_key, write_shard
from workers.engines.zero.slices import (
    WEIGHT,
    ParameterSlice,
    full_shape,
    held_slices,
    spread_weights,
    torch_optimizer,
    trained_parameters,
)

DESCRIPTION = "engine.json"
FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """State of one rank in host memory, as it was when the snapshot was taken.

    Worked example, rank 1 of 2 after five steps, of a model that is one vector of 128 numbers:
        tensors     {"weight.norm.weight": [64], "exp_avg.norm.weight": [64],
                     "exp_avg_sq.norm.weight": [64]}
        metadata    {"rank": 1, "offsets": {"norm.weight": 64},
                     "scalars": {"norm.weight": {"step": 5.0}},
                     "kinds": ["exp_avg", "exp_avg_sq", "weight"], "random": {...}}
        description {"format": 2, "parameters": {"norm.weight": [128]}, "trained": ["norm.weight"],
                     "optimizer": "adamw", "zero_stage": 1, "world_size": 2,
                     "progress": {"steps_taken": 5, ...}}

    Attributes:
        rank: of this process.
        tensors: piece key -> float32 [n].
        metadata: of this rank's file.
        description: of the whole engine.
    """

    rank: int
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]
    description: Mapping[str, Any]

    @property
    def num_bytes(self) -> int:
        """Host memory that the snapshot takes, in bytes."""
        return sum(4 * tensor.numel() for tensor in self.tensors.values())

    def write(self, folder: Path) -> list[FileRecord]:
        """Write this rank's files, which are on disk when this returns.

        Raises:
            OSError: when the disk takes no more.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank_{self.rank:05d}.safetensors"
        records = [write_shard(path, self.tensors, self.metadata)]
        if self.rank == 0:
            text = json.dumps(self.description, indent=2, sort_keys=True) + "\n"
            records.append(write_file(folder / DESCRIPTION, [text.encode()]))
        sync_folder(folder)
        return records


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """Part of a checkpoint that is no tensor.

    Attributes:
        progress: optimizer steps taken and skipped.
        loss_scale: state of a `gradients.LossScale`; None where the weights were not float16.
    """

    progress: StepCounts
    loss_scale: Mapping[str, float] | None


def take_snapshot(
    engine: Any,
    model: PackedModel,
    settings: ZeroSettings,
    progress: StepCounts,
    *,
    loss_scale: Mapping[str, float] | None = None,
) -> Snapshot:
    """Copy the state that this rank is to write to host memory.

    Args:
        engine: of DeepSpeed, or None for a policy that only scores.
        model: the module that the engine runs.
        settings: those that the engine was started with.
        progress: optimizer steps taken and skipped.
        loss_scale: state of a `gradients.LossScale`, where there is one.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    optimizer = torch_optimizer(engine)
    tensors: dict[str, Tensor] = {}
    offsets: dict[str, int] = {}
    scalars: dict[str, dict[str, float]] = {}
    kinds = {WEIGHT}
    for part in held_slices(engine, list(model.hf_named_parameters())):
        state = {} if optimizer is None else optimizer.state.get(part.owner, {})
        share = part.share(rank, world_size)
        offsets[part.name] = share.offset
        scalars[part.name] = {key: float(value) for key, value in state.items() if _scalar(value)}
        for kind, owner in _flat_state(share, state).items():
            kinds.add(kind)
            # A policy that only scores may hold 16 bits, which float32 holds to the bit.
            own = share.of(owner).to("cpu", torch.float32, copy=True)
            tensors[piece_key(kind, part.name)] = own
    metadata = {
        "rank": rank,
        "offsets": offsets,
        "scalars": scalars,
        "kinds": sorted(kinds),
        "random": random_state(),
    }
    return Snapshot(
        rank=rank,
        tensors=tensors,
        metadata=metadata,
        description=_describe(engine, model, settings)
        | {"progress": asdict(progress)}
        | ({"loss_scale": dict(loss_scale)} if loss_scale is not None else {}),
    )


def _flat_state(part: ParameterSlice, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a slice's owner: the weight and the optimizer's state per element."""
    kept = {key: value for key, value in state.items() if not _scalar(value)}
    return {WEIGHT: part.owner, **kept}


def _scalar(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.dim() == 0


def load(folder: str | Path, engine: Any, model: PackedModel, settings: ZeroSettings) -> Restored:
    """Restore this rank from whatever layout was saved; return what is no tensor of it.

    A rank that did not exist then keeps its fresh random generators. Collective.

    Raises:
        ValueError: not a checkpoint, a damaged one, or one of another model or optimizer.
    """
    source = Path(folder)
    saved = check(source, engine, model, settings)
    shards = ShardReader([source / f"rank_{rank:05d}.safetensors" for rank in _ranks(saved)])
    optimizer = torch_optimizer(engine)
    scalars, kinds = shards.scalars(), shards.kinds()
    for part in held_slices(engine, list(model.hf_named_parameters())):
        targets = {WEIGHT: part.owner}
        if optimizer is not None:
            numbers = scalars.get(part.name, {})
            targets |= _optimizer_state(optimizer, part.owner, kinds - {WEIGHT}, numbers)
        for kind, owner in targets.items():
            if part.count:
                shards.read(kind, part.name, part.offset, part.of(owner))
    spread_weights(engine)
    own = shards.metadata(dist.get_rank())
    if own is not None:
        set_random_state(own["random"])
    return Restored(progress=StepCounts(**saved["progress"]), loss_scale=saved.get("loss_scale"))


def _optimizer_state(
    optimizer: torch.optim.Optimizer,
    owner: Tensor,
    kinds: set[str],
    numbers: Mapping[str, float],
) -> dict[str, Tensor]:
    """Return the state tensors of `owner`, made where the optimizer has not stepped yet.

    Elements that belong to no parameter (padding of a flat group) stay zero, as in a run that was
    never interrupted.
    """
    state = optimizer.state[owner]
    for key, value in numbers.items():
        state[key] = torch.tensor(value, dtype=torch.float32, device=owner.device)
    for kind in kinds:
        if kind not in state:
            state[kind] = torch.zeros_like(owner, requires_grad=False)
    return {kind: state[kind] for kind in kinds}


def check(source: Path, engine: Any, model: PackedModel, settings: ZeroSettings) -> dict[str, Any]:
    """Read the folder's description, and compare it with this model and optimizer.

    Raises:
        ValueError: unless the folder is a checkpoint of this model and optimizer.
    """
    try:
        saved: dict[str, Any] = json.loads((source / DESCRIPTION).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{source} is not a checkpoint of this engine: {DESCRIPTION} can't be read ({error})"
        ) from error
    if saved.get("format") != FORMAT:
        raise ValueError(
            f"{source} has checkpoint format {saved.get('format')}, this version reads {FORMAT}"
        )
    current = _describe(engine, model, settings)
    before, now = saved["parameters"], current["parameters"]
    if before != now:
        names = sorted(set(before) ^ set(now)) or sorted(
            name for name in now if now[name] != before[name]
        )
        raise ValueError(
            f"{source} is a checkpoint of another model: {', '.join(names[:4])} differ; "
            "resume with the model it was saved from"
        )
    if saved["trained"] != current["trained"]:
        names = sorted(set(saved["trained"]) ^ set(current["trained"]))
        raise ValueError(
            f"{source} was saved with other parameters in training: {', '.join(names[:4])} differ; "
            "resume with the same adapter and frozen parts"
        )
    if current["optimizer"] not in (None, saved["optimizer"]):
        raise ValueError(
            f"{source} holds the state of optimizer {saved['optimizer']}, this engine has "
            f"{current['optimizer']}: set learner.optimizer.name={saved['optimizer']}"
        )
    return saved


def _ranks(saved: Mapping[str, Any]) -> range:
    return range(saved["world_size"])


def _describe(engine: Any, model: PackedModel, settings: ZeroSettings) -> dict[str, Any]:
    named = list(model.hf_named_parameters())
    return {
        "format": FORMAT,
        "parameters": {name: full_shape(parameter) for name, parameter in named},
        "trained": [name for name, _ in trained_parameters(engine, named)],
        "optimizer": settings.optimizer.name if settings.optimizer is not None else None,
        "zero_stage": settings.engine_stage,
        "world_size": dist.get_world_size(),
    }
