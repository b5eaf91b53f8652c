"""Read the images of prompts, and mark their places in text or chat messages.

Runs in the rollout worker, and in the driver's command that shows prompts. The tokens that an image
becomes are `spans`; the tokenizer and the template are `workers.data.prompts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.data.images.decoding import ImageFaultError, read_file
from workers.data.images.patches import digest_of, patches_of
from workers.data.images.settings import IDEFICS, Grid, ImageSettings
from workers.data.images.spans import ImageSpan

PLACE = "<image>"  # of an image in the text of a prompt file
#: The text that a family's template writes for an image, with one image token in it.
PLACES = {"qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>", "idefics3": "<image>"}

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedImage:
    """Image file that was read and made into pixels.

    Attributes:
        file: its bytes.
        digest: SHA-256 of the file and the pixel settings.
        patches: uint8, as `patches_of` returns them.
        grid: of the patches.
    """

    file: bytes = field(repr=False)
    digest: str
    patches: npt.NDArray[np.uint8] = field(repr=False)
    grid: Grid


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptImages:
    """Images of one prompt in its tokens; nothing where `spans` is empty.

    Attributes:
        spans: places, in the order of the prompt.
        loaded: the image of each span.
        settings: of the model; None for a model that takes no images.
    """

    spans: tuple[ImageSpan, ...] = ()
    loaded: tuple[LoadedImage, ...] = ()
    settings: ImageSettings | None = None


NO_IMAGES = PromptImages()


def load_images(
    sources: Sequence[str | bytes], settings: ImageSettings, *, max_per_prompt: int
) -> list[LoadedImage]:
    """Read the images of one prompt.

    Args:
        sources: a path or the bytes of each.
        settings: of the model.
        max_per_prompt: images that a prompt may have.

    Raises:
        ImageFaultError: names the image and the reason.
    """
    if len(sources) > max_per_prompt:
        raise ImageFaultError(
            f"prompt with {len(sources)} images, limit {max_per_prompt}; raise "
            "data.images.max_per_prompt"
        )
    loaded = []
    for number, source in enumerate(sources):
        try:
            file = read_file(source)
            patches, grid = patches_of(file, settings)
        except ImageFaultError as fault:
            raise ImageFaultError(f"image {number}: {fault}") from fault
        digest = digest_of(file, settings)
        loaded.append(LoadedImage(file=file, digest=digest, patches=patches, grid=grid))
    return loaded


def with_places(prompt: str | list[Message], settings: ImageSettings) -> str | list[Message]:
    """Return a prompt whose images stand as the model's template writes them.

    In text, `<image>` becomes the family's own text. In a message, `<image>` in the content and
    parts of the type "image" become parts without data.
    """
    if isinstance(prompt, str):
        return prompt.replace(PLACE, PLACES[settings.family])
    return [{**message, **_content(message, settings)} for message in prompt]


def shows_image(prompt: object) -> bool:
    """Return True where chat messages have a part that is an image."""
    if not isinstance(prompt, list):
        return False
    contents = [one.get("content") for one in prompt if isinstance(one, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, Mapping) and part.get("type") == "image" for part in parts)


def text_of(content: object) -> str:
    """Return the text of a message's content, with `<image>` for every image among its parts."""
    if not isinstance(content, list):
        return str(content or "")
    return "".join(
        PLACE if part.get("type") == "image" else str(part.get("text") or "") for part in content
    )


def _content(message: Message, settings: ImageSettings) -> Message:
    content = message.get("content")
    if isinstance(content, str) and (PLACE in content or settings.family == IDEFICS):
        pieces = content.split(PLACE)
        parts: list[Message] = []
        for number, piece in enumerate(pieces):
            parts += [{"type": "image"}] if number else []
            parts += [{"type": "text", "text": piece}] if piece else []
        return {"content": parts}
    if not isinstance(content, list):
        return {}
    # A file of rows gives every part the keys of all parts, and a template reads a key as a sign.
    return {
        "content": [
            {"type": "image"}
            if part.get("type") == "image"
            else {key: value for key, value in part.items() if value is not None}
            for part in content
        ]
    }
