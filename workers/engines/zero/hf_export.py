"""Export of a policy as a Hugging Face folder: safetensors shards, configuration, companions.

Weights come as a stream of layers; only the shard being filled is held, and only by the rank that
writes. Under ZeRO-3 every rank takes part in the stream's gathers, but the whole model is in no
process. Runs in the learner's ranks. Gathers nothing: the stream does. Which tensors a folder holds
is the business of `checkpoint_layout`.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

SHARD_BYTES = 1 << 30
# Text that belongs to a model without saying so by its suffix.
COMPANIONS = ("merges", "vocab", "LICENSE", "NOTICE")
COMPANION_SUFFIXES = (".jinja", ".json", ".model", ".spm", ".tiktoken")
# What an export writes anew, and what is of the run that made the source.
NOT_COMPANIONS = ("config.json", "adapter_config.json", "ballast_recipe.json", "trainer_state.json")


class ShardWriter:
    """Writer of tensors into safetensors files of bounded size, then of their index.

    Args:
        folder: existing, without weights.
        shard_bytes: a shard is closed before it would exceed this.
    """

    def __init__(self, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._open: dict[str, Tensor] = {}
        self._open_bytes = 0
        self._total_bytes = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Add one tensor, copied to the host."""
        size = tensor.numel() * tensor.element_size()
        if self._open and self._open_bytes + size > self._shard_bytes:
            self._close_shard()
        self._open[name] = tensor.detach().to("cpu", copy=True).contiguous()
        self._open_bytes += size
        self._total_bytes += size

    def finish(self) -> None:
        """Write the last shard and give the files their final names."""
        if self._open:
            self._close_shard()
        count = len(self._shards)
        if count == 1:
            os.replace(self._part(0), self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            os.replace(self._part(number), self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        path = self._folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _close_shard(self) -> None:
        save_file(self._open, self._part(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(self._open))
        self._open, self._open_bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}.safetensors"


def export_hf(
    folder: str | Path,
    weights: Iterable[tuple[str, Tensor]],
    *,
    config: PretrainedConfig,
    source: str | Path,
    dtype: torch.dtype,
    writes: bool,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model folder that transformers and vLLM load.

    Args:
        folder: made if need be; must not hold weights yet.
        weights: (name, full tensor) pairs as they are written, a collective under ZeRO-3: it is
            drained on every rank.
        config: of the model.
        source: folder whose tokenizer, processor and generation settings are copied.
        dtype: noted in the configuration.
        writes: True on the one rank that writes.
        shard_bytes: size of a safetensors file.

    Raises:
        ValueError: the folder already holds weights.
    """
    target = Path(folder)
    if writes and any(target.glob("*.safetensors")):
        raise ValueError(f"{target} already holds weights: export into an empty folder")
    if not writes:
        for _ in weights:
            pass
        return
    target.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(target, shard_bytes=shard_bytes)
    for name, tensor in weights:
        writer.add(name, tensor)
    writer.finish()
    settings = config.to_dict() | {"dtype": str(dtype).removeprefix("torch.")}
    settings.pop("_attn_implementation", None)
    (target / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    for path in sorted(Path(source).iterdir()):
        if path.is_file() and _is_companion(path.name):
            shutil.copy2(path, target / path.name)
        elif path.is_dir() and path.name == "additional_chat_templates":
            shutil.copytree(path, target / path.name)


def _is_companion(name: str) -> bool:
    """Return True for a file that a model needs beside weights and configuration."""
    if name in NOT_COMPANIONS or name.endswith(".index.json"):
        return False
    return name.startswith(COMPANIONS) or name.endswith(COMPANION_SUFFIXES)
