"""Qwen2.5-VL of vLLM without videos, whose processor transformers builds on torchvision alone.

Imported in vLLM's processes by the name that `image_only` registers. Importing this module leads
imports of one module of transformers to its equal on PIL, and takes the processor of videos out of
the class that vLLM builds to measure memory. Weights and computation are vLLM's own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from transformers import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as on_pil

sys.modules.setdefault("transformers.models.qwen2_vl.image_processing_qwen2_vl", on_pil)
Qwen2_5_VLProcessor.get_attributes = classmethod(lambda cls: ["image_processor", "tokenizer"])

# Their import needs the two lines above.
from vllm.model_executor.models import qwen2_5_vl as theirs  # noqa: E402
from vllm.multimodal import MULTIMODAL_REGISTRY  # noqa: E402


class ImageInfo(theirs.Qwen2_5_VLProcessingInfo):
    """Facts about the model's processor, without videos."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return no limit for images."""
        return {"image": None}

    def get_mm_max_tokens_per_item(
        self,
        seq_len: int,  # noqa: ARG002
        mm_counts: Mapping[str, int],  # noqa: ARG002
    ) -> Mapping[str, int]:
        """Return the tokens of the largest image."""
        return {"image": self.get_max_image_tokens()}


class ImageDummies(theirs.Qwen2_5_VLDummyInputsBuilder):
    """Images by which vLLM measures memory."""

    def get_dummy_mm_data(
        self,
        seq_len: int,  # noqa: ARG002
        mm_counts: Mapping[str, int],
        mm_options: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Return images of the largest size."""
        width, height = self.info.get_image_size_with_most_features()
        images = self._get_dummy_images(
            width=width,
            height=height,
            num_images=mm_counts.get("image", 0),
            overrides=mm_options.get("image"),
        )
        return {"image": images}


@MULTIMODAL_REGISTRY.register_processor(
    theirs.Qwen2_5_VLMultiModalProcessor, info=ImageInfo, dummy_inputs=ImageDummies
)
class ImageOnlyQwen25VL(theirs.Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL that takes text and images."""
