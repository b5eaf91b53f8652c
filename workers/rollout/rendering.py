r"""Render what is new in a conversation, by the model's own chat template, as token ids.

The rollout worker runs the module for conversations of several turns. `TurnRenderer.opening` gives
the ids of a prompt; `TurnRenderer.extension` gives the ids that follow a sampled turn: the end of
that turn, the new messages, and the opening of the next turn. What was sampled is never rendered:
a fixed text stands in for it, and the ids behind the stand-in are taken. The module samples
nothing, and keeps no conversation.

Example, in the format of ChatML, after the sampled ids of "5<|im_end|>":

    extension([{"role": "user", "content": "2+3="}], [{"role": "user", "content": "1+1="}], ...)
    is the ids of "\n<|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\n"
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from workers.data.trajectory import reason_of

Message = Mapping[str, Any]
USER: Message = {"role": "user", "content": "a question"}
THOUGHT = "<think>\na thought\n</think>\n\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class _StandIn:
    """Assistant's message in the place of a sampled one, and the text that marks its end.

    Example: _StandIn(message={"role": "assistant", "content": "an answer"}, mark="an answer")
    """

    message: Message
    mark: str


class TurnRenderer:
    """Renderer of one tokenizer's chat template.

    Args:
        tokenizer: of transformers, with a chat template.
        end_token_ids: tokens that end a response beside the tokenizer's own end token
            (`stop_token_ids`). Only special tokens among them end a turn; a token such as
            `</tool_call>` stops the sampling inside a turn.
        options: further variables of the template, for instance {"enable_thinking": False}.
        reads_parts: the template reads contents as lists of parts, and no text (Idefics3).

    Raises:
        ValueError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        end_token_ids: Collection[int] = (),
        options: Mapping[str, Any] | None = None,
        reads_parts: bool = False,
    ) -> None:
        if not tokenizer.chat_template:
            raise ValueError(
                "an environment of several turns writes messages, but the model's tokenizer has no "
                "chat template; use an instruct model, or observe token ids"
            )
        self._tokenizer, self._options = tokenizer, dict(options or {})
        self._reads_parts = reads_parts
        added = tokenizer.added_tokens_decoder.items()
        self._special = {str(token): number for number, token in added if token.special}
        ends = {*end_token_ids, tokenizer.eos_token_id} & set(self._special.values())
        self._ends = frozenset(ends)
        self._fits: dict[int, int] = {}  # by the number of a turn's answers: which stand-in fits

    def opening(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Return the ids of a prompt and of the opening of the assistant's turn.

        Args:
            messages: chat messages, the last of which is not the assistant's.
            tools: JSON schemas of the tools that the template shows to the model.

        Raises:
            ValueError: the template refuses the messages.
        """
        return self._encode(self._render(messages, tools, opens=True))

    def extension(
        self,
        history: Sequence[Message],
        new: Sequence[Message],
        *,
        sampled: Sequence[int],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Return the ids to append behind a sampled turn, so that new messages follow it.

        The token that closes a turn comes first where `sampled` was cut by its length or by a stop
        string, and is left out where it was sampled.

        Args:
            history: messages before the sampled turn; empty where the prompt was plain text.
            new: messages that follow it, at least one; none of the assistant's. A tool's message
                may carry `name` and `tool_call_id` for templates that show them.
            sampled: ids of the turn, as the policy sampled them.
            tools: as for `opening`.

        Raises:
            ValueError: there is no new message, or the template refuses the messages.
        """
        if not new:
            raise ValueError("there is no new message to append; give at least one")
        before = [*history] or [USER]
        fault: Exception | None = None
        answers = _num_answers(new)
        stand_ins = list(_stand_ins(before, new))
        for place in sorted(range(len(stand_ins)), key=lambda k: k != self._fits.get(answers)):
            try:
                ids = self._behind(before, stand_ins[place], new, sampled, tools)
            except ValueError as error:  # one template wants what another refuses
                fault = error
                continue
            self._fits[answers] = place
            return ids
        roles = sorted({str(message.get("role")) for message in new})
        raise ValueError(
            f"the chat template can't render a turn with new messages of the roles {roles}: {fault}"
        )

    @cached_property
    def drops(self) -> tuple[str, ...]:
        """Parts of the assistant's turns that the template drops once they are history.

        The recorded ids keep what was sampled, and differ there from a rendering of the history.
        Among: "thoughts", "white space".
        """
        dropped = []
        if not self._keeps(THOUGHT + "an answer"):
            dropped.append("thoughts")
        if not self._keeps(" an answer \n"):
            dropped.append("white space")
        return tuple(dropped)

    def _keeps(self, content: str) -> bool:
        turn = {"role": "assistant", "content": content}
        try:
            return content in self._render([USER, turn, USER], None, opens=True)
        except ValueError:  # such a history can't be rendered at all, nor be compared
            return True

    def _behind(
        self,
        before: Sequence[Message],
        stand_in: _StandIn,
        new: Sequence[Message],
        sampled: Sequence[int],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> list[int]:
        """Return the ids behind the stand-in, without a closing token that was sampled."""
        ended = [*before, stand_in.message]
        rest = _after(self._render(ended, tools, opens=False), stand_in.mark)
        tail = _after(self._render([*ended, *new], tools, opens=True), stand_in.mark)
        close = self._place_of_close(rest)
        within = rest[: len(rest) if close is None else close]  # what else the stand-in's turn has
        if close is not None or "tool_calls" in stand_in.message:
            if not tail.startswith(within.rstrip()):
                raise ValueError("the template renders a turn of tool calls in two ways")
            tail = tail[len(within.rstrip()) :]
        ids = self._encode(tail)
        return ids[self._num_sampled(tail, ids, sampled, closes=close is not None) :]

    def _place_of_close(self, rest: str) -> int | None:
        """Return where the token that closes a turn begins; None in formats without one."""
        stripped = rest.rstrip()
        for token in self._special:
            if stripped.endswith(token):
                return len(stripped) - len(token)
        return None

    def _num_sampled(
        self, tail: str, ids: Sequence[int], sampled: Sequence[int], *, closes: bool
    ) -> int:
        """Return how many of the first ids of `tail` stand for an end token that was sampled."""
        text = tail.lstrip()  # some formats put white space before the closing token
        opening = [token for token in self._special if text.startswith(token)]
        if not sampled or not opening:
            return 0
        first = self._special[max(opening, key=len)]
        was_sampled = sampled[-1] == first or (closes and sampled[-1] in self._ends)
        return ids.index(first) + 1 if was_sampled else 0

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        opens: bool,
    ) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                [self._as_read(message) for message in messages],
                tools=None if tools is None else [dict(tool) for tool in tools],
                add_generation_prompt=opens,
                tokenize=False,
                **self._options,
            )
        except Exception as error:  # a template is a program of the model's
            raise ValueError(reason_of(error)) from error

    def _as_read(self, message: Message) -> dict[str, Any]:
        """Return a message in the form that the template reads."""
        content = message.get("content")
        if not self._reads_parts or not isinstance(content, str):
            return dict(message)
        return {**message, "content": [{"type": "text", "text": content}]}

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _stand_ins(before: Sequence[Message], new: Sequence[Message]) -> Iterator[_StandIn]:
    """Yield stand-ins for a sampled turn, from the best to the simplest that a template accepts."""
    mark = "standin"
    while mark in json.dumps([before, new], default=str):
        mark += "x"
    answers = _num_answers(new)
    for count in sorted({answers, min(answers, 1)} - {0}, reverse=True):  # some take one call only
        for content in ("", None):
            for as_text in (False, True):  # True: a call's arguments are JSON, not a mapping
                calls = _calls(new[:count], mark, as_text=as_text)
                turn = {"role": "assistant", "content": content, "tool_calls": calls}
                yield _StandIn(message=turn, mark=mark)
    yield _StandIn(message={"role": "assistant", "content": mark}, mark=mark)


def _num_answers(new: Sequence[Message]) -> int:
    """Return how many of the first messages are answers of tools."""
    others = (k for k, message in enumerate(new) if message.get("role") != "tool")
    return next(others, len(new))


def _calls(answers: Sequence[Message], mark: str, *, as_text: bool) -> list[Message]:
    """Return a tool call for each answer; the last has `mark` as its argument."""
    calls: list[Message] = []
    for number, answer in enumerate(answers):
        value = {"text": mark if number == len(answers) - 1 else ""}
        function = {
            "name": str(answer.get("name") or "tool"),
            "arguments": json.dumps(value) if as_text else value,
        }
        name = str(answer.get("tool_call_id") or f"call{number:05d}")
        calls.append({"id": name, "type": "function", "function": function})
    return calls


def _after(text: str, mark: str) -> str:
    place = text.rfind(mark)
    if place < 0:
        raise ValueError("the template doesn't render the assistant's message")
    return text[place + len(mark) :]
