"""Define the content of a tool's result: texts and image files, on their way to the policy.

The tool process makes it of what a tool returned, checks it and cuts it; the rollout worker makes
messages of it. Makes no pixels.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from workers.data.images.decoding import ImageFaultError, decode, file_of
from workers.data.images.message_images import file_of_source, source_of
from workers.data.images.prompt_images import is_image

Content = Sequence[str | bytes]  # texts, and the bytes of image files, in order


def content_of(value: object) -> list[str | bytes] | None:
    """Return the texts and image files of a result; None for a result without an image.

    Such a result is a picture of PIL, or a list of content parts, one of them an image:
    [{"type": "text", "text": "the left half:"}, {"type": "image", "image": picture}]

    Raises:
        ImageFaultError: an image can't be read.
    """
    if isinstance(value, Image.Image):
        return [file_of(value)]
    if not isinstance(value, list) or not any(map(_is_shown, value)):
        return None
    return [_part(part) for part in value]


def _is_shown(part: object) -> bool:
    """Return True for a part with an image; other values of JSON may have a type "image", too."""
    return isinstance(part, Mapping) and is_image(part) and source_of(part) is not None


def _part(part: object) -> str | bytes:
    if not isinstance(part, Mapping):
        return str(part)
    source = source_of(part) if is_image(part) else None
    return str(part.get("text") or "") if source is None else file_of_source(source)


def as_json(content: Content, *, max_bytes: int) -> list[list[str]]:
    """Return a content as JSON holds it, every image decoded once to see that it can be.

    Example, a text and a file of three bytes: [["text", "left:"], ["image", "AAEC"]]

    Args:
        content: of a result, its texts cut already.
        max_bytes: of all images together.

    Raises:
        ImageFaultError: more bytes of images, or an image that can't be read.
    """
    files = [part for part in content if isinstance(part, bytes)]
    if (size := sum(map(len, files))) > max_bytes:
        raise ImageFaultError(
            f"the tool returned images of {size} bytes, beyond "
            f"environment.player.max_image_bytes={max_bytes}"
        )
    for file in files:
        decode(file)
    return [
        ["text", part] if isinstance(part, str) else ["image", base64.b64encode(part).decode()]
        for part in content
    ]


def from_json(parts: Sequence[Sequence[str]]) -> Content:
    """Return the content that `as_json` wrote."""
    return tuple(text if kind == "text" else base64.b64decode(text) for kind, text in parts)


def as_parts(content: Content) -> list[dict[str, Any]]:
    """Return a content as parts of a chat message."""
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in content
    ]
