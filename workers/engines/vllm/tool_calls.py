"""Read the tool calls in a sampled turn with vLLM's own tool parsers.

Runs in the rollout worker. Calls nothing and checks no arguments; ids of calls are not used, as
some parsers draw them at random.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# vLLM logs a traceback for each malformed call, which a policy in training makes by the thousand.
LOGGERS = ("vllm.tool_parsers", "vllm.parser")
# Formats in which a call may begin without any mark of its own.
BARE = {"pythonic": "[", "llama4_pythonic": "[", "llama3_json": "{", "llama4_json": "{"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """One call that a turn asks for.

    Example, of "[add(a=1)]": ToolCall(name="add", arguments={"a": 1})
    """

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedTurn:
    """Calls of one turn.

    Example, an answer without calls: ParsedTurn(text="4")

    Example, a call that breaks off: ParsedTurn(text="[add(a=", fault="not a call that can be read")

    Attributes:
        text: of the turn beside its calls; of a turn that can't be read, all of it.
        calls: in their order; empty for an answer.
        fault: why calls that the turn seems to make can't be read; None where there is nothing
            wrong.
    """

    text: str
    calls: Sequence[ToolCall] = field(default_factory=tuple)
    fault: str | None = None


class ToolCallParser:
    """One of vLLM's tool parsers, for one tokenizer.

    Args:
        name: as `vllm serve --tool-call-parser` takes it.
        tokenizer: of the model.
        tools: JSON schemas of the tools.

    Raises:
        ValueError: vLLM has no such parser, or the parser refuses the tokenizer.
    """

    def __init__(self, name: str, tokenizer: Any, tools: Sequence[Mapping[str, Any]]) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.tool_parsers import ToolParserManager

        known = ToolParserManager.list_registered()
        if name not in known:
            raise ValueError(
                f"environment.player.tool_parser={name}: vLLM has no such parser; it has "
                f"{', '.join(known)}"
            )
        for logger in LOGGERS:
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        self._name, self._tokenizer = name, tokenizer
        self._parser = ToolParserManager.get_tool_parser(name)
        self._request = ChatCompletionRequest(messages=[], model="", tools=list(tools))
        try:
            parser = self._new()
            parser.extract_tool_calls("an answer", self._request)
        except Exception as error:
            raise ValueError(
                f"environment.player.tool_parser={name} does not fit this model: {error}"
            ) from error
        self._marks = tuple(
            value
            for key in dir(parser)
            if ("start" in key or key == "bot_token")
            and not key.startswith("__")
            and isinstance(value := getattr(parser, key, None), str)
            and value
        )

    def parse(self, text: str) -> ParsedTurn:
        """Return the calls in the text of a turn, special tokens included but the last."""
        try:
            found = self._new().extract_tool_calls(text, self._request)
        except Exception as error:  # a parser is a program that reads what nobody has checked
            return ParsedTurn(text=text, fault=f"not a call that can be read ({error})")
        if not found.tool_calls:
            return ParsedTurn(text=text, fault=self._fault_of(text, found.content))
        try:
            calls = [_read(call.function) for call in found.tool_calls]
        except ValueError as error:
            return ParsedTurn(text=text, fault=str(error))
        return ParsedTurn(text=found.content or "", calls=calls)

    def _fault_of(self, text: str, content: str | None) -> str | None:
        """Return the fault of a turn without a call that can be read, or None for an answer."""
        lost = bool(text.strip()) and not (content or "").strip()
        begins = text.lstrip().startswith(BARE.get(self._name, "\0"))
        if lost or begins or any(mark in text for mark in self._marks):
            return "not a call that can be read"
        return None

    def _new(self) -> Any:
        """Return a parser without the state that an earlier turn left."""
        return self._parser(self._tokenizer, self._request.tools)


def _read(function: Any) -> ToolCall:
    try:
        arguments = json.loads(function.arguments or "{}")
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the arguments of {function.name} are no JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {function.name} are no mapping of names to values")
    return ToolCall(name=function.name, arguments=arguments)
