"""Low-rank adapters (peft) inside a Hugging Face model: attach, switch off, name, write.

The base model's weights stay as they are and are frozen; only A and B train. Runs in the learner's
ranks. The tensors that a publication sends are `workers/engines/zero/lora_weights.py`.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.engines.model.lora_settings import (
    PEFT_PREFIX,
    LoraSettings,
    adapted_modules,
    check_targets,
)
from workers.engines.model.vision.names import is_vision_name

ADAPTER = "default"  # peft's name for the only adapter
HELD = "held"  # the model's name while peft puts the adapter in


def attach_lora(model: PreTrainedModel, settings: LoraSettings) -> None:
    """Put A and B beside the targeted linear layers, in place; everything else is frozen.

    The tower of a vision-language model is never adapted.

    Raises:
        ValueError: a target that is no linear layer. The output head is none: it may be tied to
            the embedding, whose copy in the engine would have to change with it.
    """
    from peft import LoraConfig, inject_adapter_in_model  # a second that only adapters cost

    kind = model.config.model_type
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not is_vision_name(name, kind)
    ]
    check_targets(settings.target_modules, linear)
    # Asked for by name, and in a holder without a configuration: from that of a mixture of experts
    # peft would take every name for one of the experts' fused matrices, and wrap routers too. They
    # are no linear layers and stay frozen.
    holder = nn.ModuleDict({HELD: model})
    targets = adapted_modules(settings.target_modules, linear)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft computes alpha / r with it
        lora_dropout=0.0,
        target_modules=[f"{HELD}.{name}" for name in targets],
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        inject_adapter_in_model(config, holder, adapter_name=ADAPTER)
    assert lora_layers(model).keys() == set(targets), "peft adapted other layers"
    config.target_modules = set(targets)
    model.peft_config = {ADAPTER: config}


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Map the base model's name of each adapted module to its layer; empty without an adapter."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(getattr(layer, "lora_A", None), nn.ModuleDict)
    }


@contextlib.contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """Switch the adapter off inside the block, which then runs the base model, bit for bit."""
    layers = lora_layers(model).values()
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
    """Return the name of A or B in a peft folder and in vLLM; None for any other parameter."""
    suffix = f".{ADAPTER}.weight"
    if not name.endswith((f".lora_A{suffix}", f".lora_B{suffix}")):
        return None
    return f"{PEFT_PREFIX}{name.removesuffix(suffix)}.weight"


def save_adapter(
    folder: Path, weights: Iterable[tuple[str, Tensor]], *, model: Any, base: str, writes: bool
) -> None:
    """Write a peft folder: the adapter's tensors and its configuration.

    Args:
        folder: made if need be.
        weights: (name, full tensor) pairs, drained on every rank: a collective under ZeRO-3.
        model: to which the adapter is attached.
        base: folder of the base model, noted in the configuration.
        writes: True on the one rank that writes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights}
    if not writes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config[ADAPTER]
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(folder))
