"""Let vLLM load Qwen2.5-VL where torchvision is absent, as it is beside a CPU's torch.

Called in the rollout worker before its engine starts, and in every vLLM worker before it loads the
model. The class is imported once such a model is loaded. With torchvision nothing is changed.
"""

from __future__ import annotations

import importlib.util

MODEL = "workers.engines.vllm.image_only_model:ImageOnlyQwen25VL"


def register_image_only() -> None:
    """Register the model without videos; harmless when done twice."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    from vllm import ModelRegistry

    ModelRegistry.register_model("Qwen2_5_VLForConditionalGeneration", MODEL)
