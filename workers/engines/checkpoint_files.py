"""A ZeRO engine's checkpoint folder: DeepSpeed's files, random states, and a manifest.

The manifest says what the folder belongs to, so that a checkpoint of another model, stage or
number of ranks is refused by name before DeepSpeed reads it. Publishing a finished folder under its
final name, and keeping old ones, is the caller's.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from workers.engines.packed_model import PackedModel
from workers.engines.process_group import random_state, set_random_state
from workers.engines.zero_settings import ZeroSettings

TAG = "zero"
MANIFEST = "engine.json"


def save(
    folder: str | Path, engine: Any, policy: PackedModel, settings: ZeroSettings, progress: Any
) -> None:
    """Write this rank's part; returns when every rank has written."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    engine.save_checkpoint(str(target), tag=TAG, client_state={"progress": asdict(progress)})
    rank = dist.get_rank()
    torch.save(random_state(), target / f"random_{rank:05d}.pt")
    dist.barrier()
    if rank == 0:
        manifest = _describe(policy, settings) | {"files": _sizes(target)}
        (target / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    dist.barrier()


def load(
    folder: str | Path, engine: Any, policy: PackedModel, settings: ZeroSettings
) -> dict[str, int]:
    """Restore this rank; returns the progress that was saved."""
    source = Path(folder)
    check(source, policy, settings)
    path, client = engine.load_checkpoint(str(source), tag=TAG)
    if path is None:
        raise ValueError(f"{source}: DeepSpeed found no checkpoint {TAG!r} in it")
    # Written by `save` of this module; holds numpy and Python generator states, not only tensors.
    state = torch.load(source / f"random_{dist.get_rank():05d}.pt", weights_only=False)
    set_random_state(state)
    return client["progress"]


def check(source: Path, policy: PackedModel, settings: ZeroSettings) -> None:
    """Raise ValueError unless the folder is whole and belongs to this engine."""
    if not (source / MANIFEST).is_file():
        raise ValueError(f"{source} has no {MANIFEST}: not a finished checkpoint of this engine")
    manifest = json.loads((source / MANIFEST).read_text())
    for name, size in manifest.pop("files").items():
        path = source / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise ValueError(f"checkpoint file {path} {state}, {size} were written: restore it")
    mine = _describe(policy, settings)
    if manifest["parameters"] != mine["parameters"]:
        theirs, ours = manifest["parameters"], mine["parameters"]
        names = sorted(set(theirs) ^ set(ours)) or sorted(
            name for name in ours if ours[name] != theirs[name]
        )
        raise ValueError(
            f"{source} is a checkpoint of another model: {', '.join(names[:4])} differ; "
            "resume with the model it was saved from"
        )
    for key in ("zero_stage", "world_size"):
        if manifest[key] != mine[key]:
            raise ValueError(
                f"{source} was saved with {key}={manifest[key]}, this engine has {mine[key]}: "
                "resume with the same layout, or convert it to a universal checkpoint"
            )


def _describe(policy: PackedModel, settings: ZeroSettings) -> dict[str, Any]:
    return {
        "zero_stage": settings.engine_stage,
        "world_size": dist.get_world_size(),
        "parameters": {name: _shape(value) for name, value in policy.hf_named_parameters()},
    }


def _shape(parameter: nn.Parameter) -> list[int]:
    return list(getattr(parameter, "ds_shape", parameter.shape))


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
