"""Hand images to vLLM as pixels and expanded token ids, and bound what vLLM reserves for them.

vLLM's own way takes pictures and expands ids itself, in silence also ids that are expanded already,
and keeps a cache of pictures in the rollout worker that a publication leaves behind: the next
request for a seen picture is then answered with no token. Rendered input, as here, passes that way
by. vLLM keeps features by our own hash, of the file and the pixel settings. Runs in the rollout
worker's process. Decodes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workers.data.images.patches import normalised
from workers.data.images.prompt_images import PromptImages
from workers.data.images.settings import (
    IDEFICS,
    ImageLimits,
    ImageSettings,
    is_supported,
    read_image_settings,
)

if TYPE_CHECKING:
    from vllm.inputs import EngineInput


def image_args(model_path: str, limits: ImageLimits | None) -> dict[str, Any]:
    """Return the keywords of `AsyncEngineArgs` that concern images; none for a text model.

    Args:
        model_path: folder of the model.
        limits: of the images; None where prompts show none, and no memory is kept for them.
    """
    if limits is None:
        none = {"limit_mm_per_prompt": {"image": 0, "video": 0}}
        return none if is_supported(model_path) else {}
    settings = read_image_settings(model_path, max_pixels=limits.max_pixels)
    if settings is None:
        return {}
    size: dict[str, int] = {"longest_edge": settings.max_pixels}
    if settings.family == IDEFICS:
        size = {"longest_edge": math.isqrt(settings.max_pixels)}
    else:
        size["shortest_edge"] = settings.min_pixels
    return {
        "limit_mm_per_prompt": {"image": limits.max_per_prompt, "video": 0},
        "mm_processor_kwargs": {"size": size},
        "mm_processor_cache_gb": 0,
    }


def engine_input(token_ids: list[int], images: PromptImages) -> EngineInput:
    """Return a prompt as vLLM's engine takes it, rendered.

    Args:
        token_ids: [P] expanded ids, and whatever follows them.
        images: of the prompt; their spans lie in `token_ids`.
    """
    from vllm.inputs import mm_input, tokens_input
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    settings = images.settings
    if settings is None or not images.spans:
        return tokens_input(token_ids)
    data = _pixels(images, settings)
    items = MultiModalKwargsItems.from_hf_inputs(data, _fields(data, images, settings))
    places = []
    for span in images.spans:
        inside = torch.tensor(token_ids[span.offset : span.offset + span.length])
        places.append(
            PlaceholderRange(
                offset=span.offset,
                length=span.length,
                is_embed=inside == settings.image_token_id if settings.tile else None,
            )
        )
    digests = [span.digest for span in images.spans]
    return mm_input(token_ids, items, {"image": digests}, {"image": places})


def _pixels(images: PromptImages, settings: ImageSettings) -> Any:
    """Return the pixels of all images as a processor of transformers would.

    vLLM normalises the pixels of Qwen2.5-VL itself, just before the tower, those of Idefics3 not.
    """
    from transformers import BatchFeature

    patches = np.concatenate([image.patches for image in images.loaded])
    grids = [span.grid for span in images.spans]
    if settings.family != IDEFICS:
        pixels, grid = torch.from_numpy(patches), torch.tensor(grids)
        return BatchFeature({"pixel_values": pixels, "image_grid_thw": grid})
    rows, _, height, width = patches.shape
    return BatchFeature(
        {
            "pixel_values": torch.from_numpy(normalised(patches, settings)),
            "pixel_attention_mask": torch.ones(rows, height, width, dtype=torch.int64),
            "num_patches": torch.tensor([settings.num_rows(grid) for grid in grids]),
        }
    )


def _fields(data: Any, images: PromptImages, settings: ImageSettings) -> Mapping[str, Any]:
    """Say for each of the pixel tensors which part is of which image, as vLLM's models do."""
    from vllm.multimodal.inputs import MultiModalFieldConfig

    rows = torch.tensor([settings.num_rows(span.grid) for span in images.spans])
    by_rows = MultiModalFieldConfig.flat_from_sizes("image", rows)
    by_image = MultiModalFieldConfig.batched("image", keep_on_cpu=True)
    flat = ("pixel_values", "pixel_attention_mask")
    return {name: by_rows if name in flat else by_image for name in data}
