"""Plugin that lets vLLM load Qwen2.5-VL where torchvision is absent, as beside a CPU's torch.

vLLM calls `register` in every process that it starts, and in that which inspects a model's class
(entry point `vllm.general_plugins` in pyproject.toml). The class is imported once such a model is
loaded. With torchvision nothing is changed.
"""

from __future__ import annotations

import importlib.util

MODEL = "workers.engines.vllm.image_only_model:ImageOnlyQwen25VL"


def register() -> None:
    """Register the model without videos; harmless when done twice."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    from vllm import ModelRegistry

    ModelRegistry.register_model("Qwen2_5_VLForConditionalGeneration", MODEL)
