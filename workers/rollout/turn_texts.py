"""Turn prompts and observations into token ids: plain text as it is, messages by the template.

Runs in the rollout worker, beside the encoder of prompts. Never renders what was sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.data.images.prompt_images import shows_image
from workers.data.prompts import PromptEncoder
from workers.rollout.environments.contract import Message, Prompt
from workers.rollout.rendering import TurnRenderer


class TurnTexts:
    """Encoder of everything that an environment writes.

    Args:
        encoder: of the prompts, with the model's tokenizer.
        end_token_ids: tokens that end a turn beside the tokenizer's own end token.
    """

    def __init__(self, encoder: PromptEncoder, *, end_token_ids: Sequence[int] = ()) -> None:
        self._encoder, self._end_token_ids = encoder, tuple(end_token_ids)
        self._renderer: TurnRenderer | None = None

    def opening(self, prompt: Prompt, tools: Sequence[Mapping[str, Any]] | None) -> list[int]:
        """Return the ids of a prompt that the environment wrote.

        Raises:
            ValueError: it can't be sampled; the message is the reason.
        """
        _refuse_images(prompt)
        if isinstance(prompt, str) or tools is None:
            tokens, fault = self._encoder.encode(prompt)
        else:
            tokens = self._templates().opening(prompt, tools)
            fault = self._encoder.fault_of_length(tokens)
        if fault is not None:
            raise ValueError(fault)
        return tokens

    def extension(
        self,
        prompt: Prompt,
        history: Sequence[Message],
        new: Sequence[Message],
        *,
        sampled: Sequence[int],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> list[int]:
        """Return the ids to append behind a sampled turn.

        Behind a prompt of plain text the contents of the messages follow as they are; behind chat
        messages the template's text of the new messages and the opening of the next turn.

        Raises:
            ValueError: the template refuses the messages, or one of them shows an image.
        """
        _refuse_images(list(new))
        if isinstance(prompt, str):
            return self._encoder.continuation("".join(text_of(message) for message in new))
        return self._templates().extension(history, new, sampled=sampled, tools=tools)

    def drops(self, prompt: Prompt) -> tuple[str, ...]:
        """Return what a rendering of the history would lack of the sampled turns.

        The recorded ids keep it. Nothing is lacking behind a prompt of plain text.
        """
        return () if isinstance(prompt, str) else self._templates().drops

    def _templates(self) -> TurnRenderer:
        if self._renderer is None:
            self._renderer = TurnRenderer(
                self._encoder.tokenizer,
                end_token_ids=self._end_token_ids,
                options=self._encoder.keywords,
            )
        return self._renderer


def _refuse_images(prompt: Prompt | list[Message]) -> None:
    """Raise ValueError for messages with an image: a template would write it as one token."""
    if shows_image(prompt):
        raise ValueError(
            "the environment sent a message with an image; images are those of the prompt's row "
            "(data.image_column), so send text"
        )


def text_of(message: Message) -> str:
    """Return the text of a message; of several parts, that of the text parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in content or ())
