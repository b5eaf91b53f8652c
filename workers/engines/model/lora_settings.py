"""Settings of a low-rank adapter, given before it is attached, and the names that it goes by.

Runs in the driver, which validates settings with them, and in the learner's ranks. Imports neither
torch nor peft.
"""

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workers.engines.model.vision.names import is_vision_name

ALL_LINEAR = "all-linear"
# What peft puts before the names of the base model in the tensors of an adapter; vLLM takes it off.
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """Settings of LoRA (2106.09685): y = W x + (alpha / rank) B A x, with W frozen.

    There is no dropout: the policy that is trained must be the one that is scored and published.

    Worked example, a layer `q_proj` of 960 inputs and 960 outputs:
        rank 16    alpha 32.0    target_modules ("q_proj",)    publish "merged"    seed 0
        A [16, 960] and B [960, 16] train; W + 2.0 B A is published as `...q_proj.weight`.

    Attributes:
        rank: rows of A [rank, in] and columns of B [out, rank].
        alpha: the product is scaled by alpha / rank.
        target_modules: "all-linear", or last parts of the names of linear layers ("q_proj").
        publish: "merged" sends W + (alpha / rank) B A under W's name; "adapter" sends A and B,
            which the engine applies beside its own W.
        seed: of A's random start, equal on all ranks; B starts at zero.
    """

    rank: int = 16
    alpha: float = 32.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    publish: Literal["merged", "adapter"] = "merged"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoRA rank={self.rank}: must be at least 1")
        if not self.alpha > 0:
            raise ValueError(f"LoRA alpha={self.alpha}: must be positive")
        if not self.target_modules:
            raise ValueError(
                f"LoRA target_modules={self.target_modules!r} names no layer: "
                f"give {ALL_LINEAR!r} or names such as q_proj"
            )
        if self.publish not in ("merged", "adapter"):
            raise ValueError(f"LoRA publish={self.publish!r}: choose merged or adapter")


def unmatched_targets(targets: str | Sequence[str], modules: Iterable[str]) -> list[str]:
    """List the targets that are the end of no module's name, whole parts compared; sorted."""
    if targets == ALL_LINEAR:
        return []
    wanted = {targets} if isinstance(targets, str) else {*targets}
    for module in modules:
        wanted -= {name for name in wanted if f".{module}".endswith(f".{name}")}
    return sorted(wanted)


def linear_names(folder: Path) -> list[str]:
    """List the modules of a model folder that hold a matrix inside a layer, by file headers.

    For the driver: no weight is read, no model is built. Embeddings and heads are left out, and the
    tower of a vision-language model is.
    """
    found = set()
    config = folder / "config.json"
    kind = json.loads(config.read_text()).get("model_type") if config.is_file() else None
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        found |= {
            name.removesuffix(".weight")
            for name, tensor in header.items()
            if name.endswith(".weight") and len(tensor["shape"]) == 2 and _in_layer(name)
            if not is_vision_name(name, kind)
        }
    return sorted(found)


def check_targets(targets: str | Sequence[str], modules: Sequence[str]) -> None:
    """Raise ValueError where a target names no module that an adapter can be attached to."""
    unmatched = unmatched_targets(targets, modules)
    if unmatched:
        choices = sorted({name.rpartition(".")[2] for name in modules})
        raise ValueError(
            f"model.adapter.target_modules: {', '.join(unmatched)} is no linear layer of this "
            f"model; choose among {', '.join(choices)}, or {ALL_LINEAR}"
        )


def adapted_leaves(targets: str | Sequence[str], modules: Iterable[str]) -> tuple[str, ...]:
    """List the last name parts of the modules that `targets` select, such as `q_proj`; sorted."""
    chosen = adapted_modules(targets, modules)
    return tuple(sorted({module.rpartition(".")[2] for module in chosen}))


def adapted_modules(targets: str | Sequence[str], modules: Iterable[str]) -> list[str]:
    """List the modules that `targets` select, by their whole names."""
    chosen = [targets] if isinstance(targets, str) else targets
    return [
        module
        for module in modules
        if targets == ALL_LINEAR or any(f".{module}".endswith(f".{name}") for name in chosen)
    ]


def _in_layer(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))
