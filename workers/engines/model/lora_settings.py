"""Settings of a low-rank adapter, given before it is attached, and the names that it goes by.

Runs in the driver, which validates settings with them, and in the learner's ranks. Imports neither
torch nor peft.
"""

import json
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workers.engines.model.vision.names import is_vision_name

ALL_LINEAR = "all-linear"
# What peft puts before the names of the base model in the tensors of an adapter; vLLM takes it off.
PEFT_PREFIX = "base_model.model."
# A matrix of one expert in a file, and the stacked matrix in which transformers holds it.
OF_ONE_EXPERT = re.compile(r"^(.*\bexperts)\.\d+\.(\w+)$")
STACKED = {
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "w1": "gate_up_proj",
    "w3": "gate_up_proj",
    "down_proj": "down_proj",
    "w2": "down_proj",
}


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
        target_modules: "all-linear", or last parts of the names of linear layers ("q_proj") and of
            the stacked matrices of experts ("experts.gate_up_proj").
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
    """List the targets that an adapter can have in a model folder, by file headers.

    For the driver: no weight is read, no model is built. Experts go by the names of the stacked
    matrices in which transformers holds them. Embeddings, heads and routers are left out, and the
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
            _target(name)
            for name, tensor in header.items()
            if _in_layer(name) and not is_vision_name(name, kind)
            if (name.endswith(".weight") and len(tensor["shape"]) == 2) or is_stacked(name)
        }
    mixtures = {name.rpartition(".experts.")[0] for name in found if is_stacked(name)}
    return sorted(found - {f"{mixture}.gate" for mixture in mixtures})


def is_stacked(name: str) -> bool:
    """Return True for the name of a matrix of all experts, as transformers stacks them."""
    return any(name.endswith(f".experts.{leaf}") for leaf in {*STACKED.values()})


def check_published(publish: str, targets: Iterable[str]) -> None:
    """Raise ValueError where engines would have to apply an adapter of experts."""
    stacked = sorted(name for name in targets if is_stacked(name))
    if publish == "adapter" and stacked:
        raise ValueError(
            f"model.adapter.publish=adapter: vLLM applies no adapter to experts "
            f"({', '.join(stacked[:2])}{', ...' if len(stacked) > 2 else ''}); set "
            "model.adapter.publish=merged, or name other layers in model.adapter.target_modules, "
            "such as [q_proj,k_proj,v_proj,o_proj]"
        )


def check_targets(targets: str | Sequence[str], modules: Sequence[str]) -> None:
    """Raise ValueError where a target names no module that an adapter can be attached to."""
    unmatched = unmatched_targets(targets, modules)
    if unmatched:
        choices = sorted({name.rpartition(".")[2] for name in modules})
        raise ValueError(
            f"model.adapter.target_modules: {', '.join(unmatched)} is no linear layer of this "
            f"model, and no matrix of experts; choose among {', '.join(choices)}, or {ALL_LINEAR}"
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


def _target(name: str) -> str:
    """Return the target of a tensor in a file, by the name that it has in transformers."""
    name = name.removesuffix(".weight")
    found = OF_ONE_EXPERT.match(name)
    if found is None or found[2] not in STACKED:
        return name
    return f"{found[1]}.{STACKED[found[2]]}"


def _in_layer(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))
