"""Model folder as transformers reads it: in the dtype and on the device where it will compute.

Runs in the ranks of learner, reference and critic. Builds no module of its own: `PolicyModel` and
`CriticModel` take what is read here.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


def read_model(
    kind: Any, folder: str | Path, *, dtype: torch.dtype, device: torch.device | None = None
) -> PreTrainedModel:
    """Read a model folder as `kind`, one of transformers' auto classes.

    Weights come from the file one by one: no copy of another type or on another device is whole.
    Buffers (rotary frequencies, biases of routers) keep the type that transformers gives them.
    """
    placed = {} if device is None else {"device_map": {"": device}}
    model: PreTrainedModel = kind.from_pretrained(
        str(folder), dtype=dtype, local_files_only=True, **placed
    )
    for parameter in model.parameters():
        # Partitions of ZeRO-3 come as float32, and so do modules that transformers wants to keep.
        if parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
        if getattr(parameter, "ds_tensor", None) is not None:
            parameter.ds_tensor.data = parameter.ds_tensor.data.to(dtype)
    return model


def check_model_folder(folder: str | Path) -> None:
    """Raise ValueError unless `folder` holds a readable configuration and safetensors weights."""
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"model folder {path} does not exist: give a Hugging Face model folder")
    if not (path / "config.json").is_file():
        raise ValueError(f"model folder {path} has no config.json: not a Hugging Face model")
    try:
        json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise ValueError(
            f"{path / 'config.json'} is not JSON ({error}): export it again"
        ) from error
    if not any((path / name).is_file() for name in WEIGHT_FILES):
        raise ValueError(
            f"model folder {path} has no weights ({' or '.join(WEIGHT_FILES)}): "
            "save the model with safetensors there"
        )
