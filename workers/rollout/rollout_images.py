"""Read the images that an environment shows in one rollout, within the rollout's budgets.

Runs in the rollout worker, between the session of a row and the encoder: messages lose the data of
their images, and the images become pixels in a thread, once for all rows that show the same file.
Places nothing among token ids: `turn_texts` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from workers.data.images.decoding import ImageFaultError
from workers.data.images.message_images import (
    Source,
    file_of_source,
    split_messages,
    split_prompt,
)
from workers.data.images.prompt_images import LoadedImage, PromptImages, shows_image
from workers.data.prompts import PromptEncoder
from workers.rollout.environments.contract import Message, Prompt


class RolloutImages:
    """Images of one rollout.

    Args:
        encoder: of the prompts, with the limits of images.
        own: images of the prompt's row.
        max_bytes: of the files of all images that the environment shows.
    """

    def __init__(self, encoder: PromptEncoder, own: PromptImages, *, max_bytes: int) -> None:
        self._encoder, self._own, self._max_bytes = encoder, own.loaded, max_bytes
        self._num_bytes = 0

    async def of_messages(
        self, messages: Sequence[Message], *, held: int
    ) -> tuple[list[dict[str, Any]], list[LoadedImage]]:
        """Return messages as a chat template reads them, and their images.

        Args:
            messages: that the environment observes.
            held: images that the row shows already.

        Raises:
            ValueError: an image that can't be shown; the message is the reason.
        """
        if self._encoder.image_settings is None:
            _refuse_images(list(messages))
        plain, sources = split_messages(messages)
        return plain, await self._load(sources, held=held)

    async def of_prompt(self, prompt: Prompt) -> tuple[Prompt, list[LoadedImage]]:
        """Return a prompt as a chat template reads it, and its images.

        `<image>` in a text and image parts without data stand for the images of the prompt's row.

        Raises:
            ValueError: an image that can't be shown, or another number of such places than of the
                row's images.
        """
        if self._encoder.image_settings is None:
            _refuse_images(prompt)
            return prompt, []
        plain, sources = split_prompt(prompt)
        given = [source for source in sources if source is not None]
        places = len(sources) - len(given)
        if places and places != len(self._own):
            raise ValueError(
                f"a prompt with {places} places for images of its row, which has "
                f"{len(self._own)}; name all of them or none"
            )
        new, old = iter(await self._load(given, held=places)), iter(self._own)
        return plain, [next(old) if source is None else next(new) for source in sources]

    async def _load(self, sources: Sequence[Source], *, held: int) -> list[LoadedImage]:
        """Make the pixels of images, in a thread: decoding takes the time of many tokens."""
        if not sources:
            return []
        files = await asyncio.to_thread(_read_all, sources)
        self._num_bytes += sum(map(len, files))
        if self._num_bytes > self._max_bytes:
            raise ValueError(
                f"images of {self._num_bytes} bytes, beyond "
                f"environment.max_image_bytes={self._max_bytes}"
            )
        return await asyncio.to_thread(self._encoder.load, files, held=held)


def _read_all(sources: Sequence[Source]) -> list[bytes]:
    files = []
    for number, source in enumerate(sources):
        try:
            files.append(file_of_source(source))
        except ImageFaultError as fault:
            raise ImageFaultError(f"image {number}: {fault}") from fault
    return files


def _refuse_images(prompt: object) -> None:
    """Raise ValueError for messages with an image in a run whose engines take none."""
    if shows_image(prompt):
        raise ValueError(
            "the environment sent an image, and this run shows none: name a vision-language model "
            "in model.path and set environment.shows_images=true, or send text"
        )
