"""Take the images out of messages that an environment or a tool writes.

What is left is what a chat template reads: parts of type "image" without data. Runs in the rollout
worker and in tool processes. Makes no pixels: `prompt_images.load_images` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from workers.data.images.decoding import ImageFaultError, file_of, read_file
from workers.data.images.prompt_images import PLACE, is_image

Message = Mapping[str, Any]
Source = str | bytes | Image.Image  # path or address, file, or picture


def split_prompt(
    prompt: str | Sequence[Message],
) -> tuple[str | list[dict[str, Any]], list[Source | None]]:
    """Return a prompt without the data of its images, and a source for each of its images.

    Example, an image of the prompt's row before one that the environment sends:
        [{"role": "user", "content": [
            {"type": "image"}, {"type": "text", "text": "or"}, {"type": "image", "image": b"..."}
        ]}]
    becomes the same message without `b"..."`, and the sources [None, b"..."].

    Args:
        prompt: text with `<image>`, or chat messages with `<image>` or image parts.

    Returns:
        The prompt, and its sources in order; None where an image has no data.

    Raises:
        ImageFaultError: an image part holds something else.
    """
    if isinstance(prompt, str):
        return prompt, [None] * prompt.count(PLACE)
    sources: list[Source | None] = []
    plain = []
    for message in prompt:
        content = message.get("content")
        if isinstance(content, str):
            sources += [None] * content.count(PLACE)
        plain.append(_split(message, sources))
    return plain, sources


def split_messages(
    messages: Sequence[Message],
) -> tuple[list[dict[str, Any]], list[Source]]:
    """Return messages behind a turn without the data of their images, and the source of each.

    `<image>` in a text is text.

    Raises:
        ImageFaultError: an image part holds no data, or something else.
    """
    sources: list[Source | None] = []
    plain = [_split(message, sources) for message in messages]
    given = [source for source in sources if source is not None]
    if len(given) < len(sources):
        raise ImageFaultError(
            "an image part without data behind a turn; give "
            '{"type": "image", "image": bytes, a picture, a path or a data: address}'
        )
    return plain, given


def without_images(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages without the data of their images, which a template does not read."""
    return [_split(message, []) for message in messages]


def file_of_source(source: Source) -> bytes:
    """Return the bytes of an image's file; of a picture, those of a PNG file.

    Raises:
        ImageFaultError: the file can't be read, or the picture not be kept.
    """
    return file_of(source) if isinstance(source, Image.Image) else read_file(source)


def source_of(part: Mapping[str, Any]) -> Source | None:
    """Return the image that a part of a message holds; None where it holds no data.

    A part is `{"type": "image", "image": X}` or `{"type": "image_url", "image_url": {"url": X}}`,
    X a path, an address, bytes, a record of `bytes` and `path`, or a picture of PIL.

    Raises:
        ImageFaultError: it holds something else.
    """
    value = part.get("image")
    value = part.get("image_url") if value is None else value
    if isinstance(value, Mapping):
        names = (name for name in ("url", "bytes", "path") if value.get(name) is not None)
        value = value.get(next(names, ""))
    if value is None or isinstance(value, str | bytes | Image.Image):
        return value
    raise ImageFaultError(
        f"an image part holds a {type(value).__name__}; give bytes, a picture of PIL, a path or a "
        "data: address"
    )


def _split(message: Message, sources: list[Source | None]) -> dict[str, Any]:
    """Return a message without the data of its images, whose sources are appended."""
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    sources += [source_of(part) for part in content if is_image(part)]
    parts = [{"type": "image"} if is_image(part) else part for part in content]
    return {**message, "content": parts}
