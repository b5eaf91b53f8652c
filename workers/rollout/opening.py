"""Define the opening of a row: the origin of its first ids, which the row does not train.

Used in the rollout worker by the session of the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.data.images.prompt_images import text_of
from workers.data.turns import TurnSpan
from workers.rollout.environments.contract import Message, Prompt


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Origin of a row's first ids, and the row's length.

    Example, of a row that goes on behind the first turn of another one:
        Opening(
            prompt=[{"role": "user", "content": "2+3="}],
            max_tokens=66,
            history=(
                {"role": "user", "content": "2+3="},
                {"role": "assistant", "content": "5"},
            ),
            shared=(TurnSpan(number=1, start=2, end=4, finish_reason="stop", state=7),),
        )

    Attributes:
        prompt: text, or chat messages.
        max_tokens: longest row.
        tools: schemas that the prompt describes.
        history: chat messages that the ids hold; None: those of the prompt.
        shared: turns among the ids, which train in other rows.
    """

    prompt: Prompt
    max_tokens: int
    tools: Sequence[Mapping[str, Any]] | None = None
    history: Sequence[Message] | None = None
    shared: Sequence[TurnSpan] = ()

    def messages(self) -> list[Message]:
        """Return the chat messages that the ids hold; none for plain text."""
        if self.history is not None:
            return list(self.history)
        return [] if isinstance(self.prompt, str) else list(self.prompt)

    def followed_by(self, messages: Sequence[Message]) -> Prompt:
        """Return the prompt with messages behind it, `<image>` for each image behind a text."""
        if isinstance(self.prompt, str):
            return self.prompt + "".join(text_of(message.get("content")) for message in messages)
        return [*self.prompt, *(dict(message) for message in messages)]
