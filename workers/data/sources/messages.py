"""Put a cell of the prompt column into the form in which it is sent.

Parquet gives every chat message every key that one of them has, null where it has none, and some
sets give a message's content as a list of parts. Templates take neither. Runs in the driver, before
any tokenizer; what is no prompt is left as it is, and refused by the encoder with its row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PLACE = "{prompt}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptFormat:
    r"""Form of every prompt of a source.

    Example: PromptFormat(template="{prompt}\nPut the answer into \\boxed{}.", as_chat=True)

    Attributes:
        template: text around a text prompt, or around the last user message; "{prompt}" stands for
            it.
        system_prompt: message put before chats that have no system message.
        as_chat: make a text prompt a chat of one user message.
    """

    template: str | None = None
    system_prompt: str | None = None
    as_chat: bool = False

    def apply(self, value: Any) -> Any:
        """Return the prompt that a cell holds; a value that is no prompt is returned unchanged."""
        if isinstance(value, str):
            text = self._filled(value)
            if not self.as_chat and self.system_prompt is None:
                return text
            return self._opened([{"role": "user", "content": text}])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            return value
        messages = [clean_message(each) for each in value]
        for message in reversed(messages):
            if message.get("role") == "user" and isinstance(message.get("content"), str):
                message["content"] = self._filled(message["content"])
                break
        return self._opened(messages)

    def _filled(self, text: str) -> str:
        return text if self.template is None else self.template.replace(PLACE, text)

    def _opened(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        has_one = bool(messages) and messages[0].get("role") in ("system", "developer")
        if self.system_prompt is None or has_one or not messages:
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]


def clean_message(message: dict[str, Any]) -> dict[str, Any]:
    """Return a chat message without null keys, its text parts joined.

    A null content stays: a message that calls tools has one. Parts that are not all text stay.
    """
    kept = {key: _without_nulls(value) for key, value in message.items() if value is not None}
    if "content" in message:
        kept["content"] = _joined(kept.get("content"))
    return kept


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _joined(content: Any) -> Any:
    if not isinstance(content, list) or not content:
        return content
    texts = [_text_of(part) for part in content]
    return content if None in texts else "".join(text for text in texts if text is not None)


def _text_of(part: Any) -> str | None:
    """Return the text of a part of a message's content; None for a part that is not text."""
    if isinstance(part, str):
        return part
    is_text = isinstance(part, dict) and part.get("type", "text") == "text"
    text = part.get("text") if is_text else None
    return text if isinstance(text, str) else None
