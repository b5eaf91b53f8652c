"""Turn prompts and observations into token ids: plain text as it is, messages by the template.

Images among them become their tokens here, once. Runs in the rollout worker, beside the encoder of
prompts. Never renders what was sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.data.images.decoding import ImageFaultError
from workers.data.images.prompt_images import (
    NO_IMAGES,
    PLACES,
    LoadedImage,
    PromptImages,
    is_image,
    with_places,
)
from workers.data.images.settings import IDEFICS
from workers.data.prompts import PromptEncoder
from workers.rollout.environments.contract import Message, Prompt
from workers.rollout.rendering import TurnRenderer

Tools = Sequence[Mapping[str, Any]] | None


class TurnTexts:
    """Encoder of everything that an environment writes.

    Args:
        encoder: of the prompts, with the model's tokenizer.
        end_token_ids: tokens that end a turn beside the tokenizer's own end token.
    """

    def __init__(self, encoder: PromptEncoder, *, end_token_ids: Sequence[int] = ()) -> None:
        self._encoder, self._end_token_ids = encoder, tuple(end_token_ids)
        self._renderer: TurnRenderer | None = None

    @property
    def encoder(self) -> PromptEncoder:
        """The encoder of the prompts."""
        return self._encoder

    def opening(
        self, prompt: Prompt, tools: Tools, loaded: Sequence[LoadedImage] = ()
    ) -> tuple[list[int], PromptImages]:
        """Return the ids of a prompt that the environment wrote, and the places of its images.

        Args:
            prompt: without the data of its images.
            tools: schemas that it describes.
            loaded: its images, in order.

        Raises:
            ValueError: it can't be sampled; the message is the reason.
        """
        if isinstance(prompt, str) or tools is None:
            tokens, images, fault = self._encoder.encode_shown(prompt, loaded)
        else:
            settings = self._encoder.image_settings
            shown = prompt if settings is None else with_places(prompt, settings)
            assert not isinstance(shown, str)
            tokens, images = self._placed(self._templates().opening(shown, tools), loaded, shown)
            fault = self._encoder.fault_of_length(tokens, images.num_tokens)
        if fault is not None:
            raise ValueError(fault)
        return tokens, images

    def extension(
        self,
        prompt: Prompt,
        history: Sequence[Message],
        new: Sequence[Message],
        *,
        sampled: Sequence[int],
        tools: Tools,
        loaded: Sequence[LoadedImage] = (),
    ) -> tuple[list[int], PromptImages]:
        """Return the ids to append behind a sampled turn, and the places of images among them.

        Behind a prompt of plain text the contents of the messages follow as they are; behind chat
        messages the template's text of the new messages and the opening of the next turn.

        Args:
            prompt: of the row.
            history: messages before the sampled turn.
            new: messages without the data of their images.
            sampled: ids of the turn.
            tools: schemas that the prompt describes.
            loaded: images of the new messages, in order.

        Raises:
            ValueError: the template refuses the messages, or leaves out an image.
        """
        if isinstance(prompt, str):
            text = "".join(self._written(message) for message in new)
            return self._placed(self._encoder.continuation(text), loaded, new)
        ids = self._templates().extension(history, new, sampled=sampled, tools=tools)
        return self._placed(ids, loaded, new)

    def drops(self, prompt: Prompt) -> tuple[str, ...]:
        """Return what a rendering of the history would lack of the sampled turns.

        The recorded ids keep it. Nothing is lacking behind a prompt of plain text.
        """
        return () if isinstance(prompt, str) else self._templates().drops

    def _placed(
        self, ids: list[int], loaded: Sequence[LoadedImage], messages: Sequence[Message]
    ) -> tuple[list[int], PromptImages]:
        """Expand the placeholders; text that is a placeholder's by chance stays text."""
        if not loaded:
            return ids, NO_IMAGES
        try:
            return self._encoder.placed(ids, loaded)
        except ImageFaultError as fault:
            roles = sorted({str(message.get("role")) for message in messages})
            raise ImageFaultError(
                f"{fault}. The chat template may write no place for images in messages of the "
                f"roles {roles}; send images in a message of the user "
                "(environment.player.observe_as=user for tools)"
            ) from fault

    def _written(self, message: Message) -> str:
        """Return what a message adds to a prompt of plain text."""
        settings, content = self._encoder.image_settings, message.get("content")
        if settings is None or not isinstance(content, list):
            return text_of(message)
        place = PLACES[settings.family]
        return "".join(place if is_image(part) else part_text(part) for part in content)

    def _templates(self) -> TurnRenderer:
        if self._renderer is None:
            settings = self._encoder.image_settings
            self._renderer = TurnRenderer(
                self._encoder.tokenizer,
                end_token_ids=self._end_token_ids,
                options=self._encoder.keywords,
                reads_parts=settings is not None and settings.family == IDEFICS,
            )
        return self._renderer


def text_of(message: Message) -> str:
    """Return the text of a message; of several parts, that of the text parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(part_text(part) for part in content or ())


def part_text(part: Message) -> str:
    """Return the text of a part of a message; none for an image."""
    return str(part.get("text") or "")
