"""Read the images of prompts, and mark their places in text or chat messages.

Runs in the rollout worker, and in the driver's command that shows prompts. The tokens that an image
becomes are `spans`; the tokenizer and the template are `workers.data.prompts`.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
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

IMAGE_PARTS = ("image", "image_url")  # types of the parts of a message that are images

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True, weakref_slot=True)
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
    """Images of one prompt, or of one row, in its tokens; nothing where `spans` is empty.

    Attributes:
        spans: places, in the order of the tokens.
        loaded: the image of each span.
        settings: of the model; None for a model that takes no images.
    """

    spans: tuple[ImageSpan, ...] = ()
    loaded: tuple[LoadedImage, ...] = ()
    settings: ImageSettings | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all images."""
        return sum(span.length for span in self.spans)

    def before(self, end: int) -> PromptImages:
        """Return the images that end within the first `end` tokens."""
        count = sum(span.offset + span.length <= end for span in self.spans)
        if count == len(self.spans):
            return self
        return replace(self, spans=self.spans[:count], loaded=self.loaded[:count])

    def with_later(self, later: PromptImages, *, start: int) -> PromptImages:
        """Return these images and those of tokens that were appended from `start` on."""
        if not later.spans:
            return self
        if not self.spans and not start:
            return later
        moved = tuple(replace(span, offset=start + span.offset) for span in later.spans)
        return PromptImages(
            spans=self.spans + moved,
            loaded=self.loaded + later.loaded,
            settings=later.settings,
        )


NO_IMAGES = PromptImages()


def load_images(
    sources: Sequence[str | bytes],
    settings: ImageSettings,
    *,
    known: MutableMapping[str, LoadedImage],
) -> list[LoadedImage]:
    """Read the images of one prompt.

    Args:
        sources: a path, an address or the bytes of each.
        settings: of the model.
        known: images by their digests, whose pixels are not made again; others are added.

    Raises:
        ImageFaultError: names the image and the reason.
    """
    loaded = []
    for number, source in enumerate(sources):
        try:
            loaded.append(_load(read_file(source), settings, known))
        except ImageFaultError as fault:
            raise ImageFaultError(f"image {number}: {fault}") from fault
    return loaded


def _load(
    file: bytes, settings: ImageSettings, known: MutableMapping[str, LoadedImage]
) -> LoadedImage:
    digest = digest_of(file, settings)
    found = known.get(digest)
    if found is None:
        patches, grid = patches_of(file, settings)
        found = known[digest] = LoadedImage(file=file, digest=digest, patches=patches, grid=grid)
    return found


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
    return any(is_image(part) for part in parts)


def is_image(part: object) -> bool:
    """Return True for a part of a message that is an image."""
    return isinstance(part, Mapping) and part.get("type") in IMAGE_PARTS


def text_of(content: object) -> str:
    """Return the text of a message's content, with `<image>` for every image among its parts."""
    if not isinstance(content, list):
        return str(content or "")
    return "".join(PLACE if is_image(part) else str(part.get("text") or "") for part in content)


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
            if is_image(part)
            else {key: value for key, value in part.items() if value is not None}
            for part in content
        ]
    }
