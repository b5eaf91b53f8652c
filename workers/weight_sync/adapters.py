"""Application of a published LoRA adapter to a live vLLM model, without a folder.

Data flows: A and (alpha / r) B under peft's names, as a transport received them, to vLLM's own LoRA
slots, which its kernels read. Runs inside vLLM's workers. The model's weights are not touched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from workers.engines.model.lora_settings import PEFT_PREFIX


def is_adapter(names: Collection[str]) -> bool:
    """Return True where a publication is an adapter, and not weights of the model."""
    return all(name.startswith(PEFT_PREFIX) for name in names)


def apply_adapter(runner: Any, tensors: Mapping[str, Tensor], adapter_id: int) -> None:
    """Replace the adapter `adapter_id` of a model runner.

    Args:
        runner: vLLM's model runner, of an engine with `enable_lora`.
        tensors: A [r, in] and scaled B [out, r] by peft's names, whole on every worker.
        adapter_id: vLLM's number of the adapter.

    Raises:
        ValueError: a layer that vLLM cannot adapt; it would leave it out in silence.
    """
    stacked = sorted(name for name, tensor in tensors.items() if tensor.dim() > 2)
    if stacked:
        raise ValueError(
            f"{stacked[0]} is an adapter of experts, which vLLM is not given by itself: set "
            "model.adapter.publish=merged, or name other layers in model.adapter.target_modules"
        )
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    manager = runner.lora_manager._adapter_manager
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    rank = next(tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name)
    adapter = LoRAModel.from_lora_tensors(
        adapter_id,
        {name: tensor.clone() for name, tensor in tensors.items()},  # the buffer is written again
        # B arrives scaled: alpha / r is 1.
        PEFTHelper(r=rank, lora_alpha=rank, target_modules=[]),
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        weights_mapper=mapper.get_rename_mapper() if mapper is not None else None,
    )
    unknown = sorted(adapter.loras.keys() - _adaptable(manager))
    if unknown:
        raise ValueError(
            f"vLLM has no LoRA for {', '.join(unknown[:4])}: take these layers out of "
            "model.adapter.target_modules, or set model.adapter.publish=merged"
        )
    # Half a layer cannot be applied; attestation names what did not arrive.
    adapter.loras = {
        name: layer
        for name, layer in adapter.loras.items()
        if layer.lora_a is not None and layer.lora_b is not None
    }
    manager.remove_adapter(adapter_id)
    manager.add_adapter(adapter)
    manager.activate_adapter(adapter_id)


def _adaptable(manager: Any) -> set[str]:
    """Return the layers that vLLM can adapt, by the names they have in a checkpoint."""
    found = set(manager.modules)
    for fused, parts in manager.packed_modules.items():
        found.discard(fused)
        found.update(parts)
    return found
