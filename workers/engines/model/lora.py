"""Low-rank adapters inside a Hugging Face model: attach, switch off, name, write as peft does.

The base model's weights stay as they are and are frozen; only A and B train. Linear layers are
adapted by peft, the stacked matrices of experts by `families/expert_factors.py`. Runs in the
learner's ranks. The tensors that a publication sends are `workers/engines/zero/lora_weights.py`.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.engines.model.families.expert_factors import (
    HOLDER,
    ExpertFactors,
    attach_factors,
    expert_stacks,
)
from workers.engines.model.lora_settings import (
    PEFT_PREFIX,
    LoraSettings,
    adapted_modules,
    check_published,
    check_targets,
)
from workers.engines.model.vision.names import is_vision_name

ADAPTER = "default"  # peft's name for the only adapter
HELD = "held"  # the model's name while peft puts the adapter in
OF_EXPERTS = re.compile(rf"^(.+)\.{HOLDER}\.(\w+)\.(lora_[AB])$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Factors:
    """A and B beside a weight W of the base: W + scale B A, matrix by matrix.

    Attributes:
        a: [r, in], or [E, r, in] of E experts.
        b: [out, r], or [E, out, r].
        scale: alpha / r.
    """

    a: nn.Parameter
    b: nn.Parameter
    scale: float


def adaptable_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Map the name of every target that an adapter can have to its weight.

    A linear layer goes by its own name, experts by that of their stacked matrix. The output head is
    none: it may be tied to the embedding, whose copy in the engine would have to change with it.
    Routers are none, nor is the tower of a vision-language model.
    """
    kind = model.config.model_type
    head = model.get_output_embeddings()
    found: dict[str, Tensor] = {**expert_stacks(model)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            found[name] = module.weight
    return {name: weight for name, weight in found.items() if not is_vision_name(name, kind)}


def attach_lora(model: PreTrainedModel, settings: LoraSettings) -> None:
    """Put A and B beside the targeted matrices, in place; everything else is frozen.

    Raises:
        ValueError: a target that is no matrix an adapter can be attached to, or one that engines
            cannot adapt where A and B are published by themselves.
    """
    from peft import LoraConfig, inject_adapter_in_model  # a second that only adapters cost

    adaptable = list(adaptable_weights(model))
    check_targets(settings.target_modules, adaptable)
    targets = adapted_modules(settings.target_modules, adaptable)
    check_published(settings.publish, targets)
    of_experts = expert_stacks(model).keys() & set(targets)
    linear = [name for name in targets if name not in of_experts]
    # Asked for by name, and in a holder without a configuration: from that of a mixture of experts
    # peft would take every name for one of the experts' stacked matrices, and wrap routers too.
    holder = nn.ModuleDict({HELD: model})
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft computes alpha / r with it
        lora_dropout=0.0,
        target_modules=[f"{HELD}.{name}" for name in linear],
        task_type="CAUSAL_LM",
    )
    model.requires_grad_(False)
    leaves = defaultdict(list)
    for name in sorted(of_experts):
        experts, _, leaf = name.rpartition(".")
        leaves[experts].append(leaf)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if linear:
            inject_adapter_in_model(config, holder, adapter_name=ADAPTER)
        for experts, own in leaves.items():
            scale = settings.alpha / settings.rank
            attach_factors(model.get_submodule(experts), own, rank=settings.rank, scale=scale)
    assert lora_layers(model).keys() == set(linear), "peft adapted other layers"
    config.target_modules = set(linear)
    config.target_parameters = sorted(of_experts) or None
    model.peft_config = {ADAPTER: config}


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Map the base model's name of each adapted linear layer to peft's layer; empty without any."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(getattr(layer, "lora_A", None), nn.ModuleDict)
    }


def expert_factors(model: nn.Module) -> dict[str, ExpertFactors]:
    """Map the base model's name of each adapted matrix of experts to its factors."""
    return {
        name.replace(f".{HOLDER}.", "."): module
        for name, module in model.named_modules()
        if isinstance(module, ExpertFactors)
    }


def adapted_weights(model: nn.Module) -> dict[str, Factors]:
    """Map the base model's name of each adapted weight to the factors beside it."""
    found = {
        f"{name}.weight": Factors(
            a=layer.lora_A[ADAPTER].weight,
            b=layer.lora_B[ADAPTER].weight,
            scale=layer.scaling[ADAPTER],
        )
        for name, layer in lora_layers(model).items()
    }
    for name, own in expert_factors(model).items():
        found[name] = Factors(a=own.lora_A, b=own.lora_B, scale=own.scale)
    return found


@contextlib.contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """Switch the adapter off inside the block, which then runs the base model, bit for bit."""
    layers = [*lora_layers(model).values(), *expert_factors(model).values()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def base_name(name: str) -> str:
    """Return a parameter's name without adapter: `q_proj.weight` for its wrapped layer."""
    return name.replace(".base_layer.", ".")


def adapter_name(name: str) -> str | None:
    """Return the name by which A or B is published, vLLM's; None for any other parameter.

    It is that in a peft folder too, but for A and B of experts, see `peft_tensors`.
    """
    of_experts = OF_EXPERTS.match(name)
    if of_experts:
        return f"{PEFT_PREFIX}{'.'.join(of_experts.groups())}.weight"
    suffix = f".{ADAPTER}.weight"
    if not name.endswith((f".lora_A{suffix}", f".lora_B{suffix}")):
        return None
    return f"{PEFT_PREFIX}{name.removesuffix(suffix)}.weight"


def peft_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name and lay out the tensors of an adapter as peft does.

    peft wraps the adapted matrices of a module of experts one around the other, in their order, and
    stacks their factors as A [E r, in], expert by expert, and B [out, r E], column by column.
    """
    found = dict(tensors)
    for name, module in model.named_modules():
        own = getattr(module, HOLDER, None)
        if not isinstance(own, nn.ModuleDict):
            continue
        for depth, leaf in enumerate(reversed(list(own))):
            inner = f"{PEFT_PREFIX}{name}{'.base_layer' * depth}"
            a = found.pop(f"{PEFT_PREFIX}{name}.{leaf}.lora_A.weight")  # [E, r, in]
            b = found.pop(f"{PEFT_PREFIX}{name}.{leaf}.lora_B.weight")  # [E, out, r]
            found[f"{inner}.lora_A.weight"] = a.flatten(0, 1)
            found[f"{inner}.lora_B.weight"] = b.permute(1, 2, 0).flatten(1).contiguous()
    return found


def save_adapter(
    folder: Path, weights: Iterable[tuple[str, Tensor]], *, model: Any, base: str, writes: bool
) -> None:
    """Write a peft folder: the adapter's tensors and its configuration.

    Args:
        folder: made if need be.
        weights: (published name, full tensor) pairs, drained on every rank: a collective under
            ZeRO-3.
        model: to which the adapter is attached.
        base: folder of the base model, noted in the configuration.
        writes: True on the one rank that writes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights}
    if not writes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = peft_tensors(model, tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config[ADAPTER]
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(folder))
