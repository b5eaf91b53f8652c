"""Read the bodies of requests: OpenAI's chat completions and completions.

Runs in the rollout worker, under its HTTP server. Whatever a body holds, the result is a `Call`, or
a `CallError` that names the parameter. The policy on parameters is in three tables: those that are
read, those that are ignored (sampling is the run's, so that log-probs stay those of the policy
that trains), and those that are refused unless they ask for what happens anyway. A parameter that
no table knows is refused. Samples nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.data.images.prompt_images import is_image

Body = Mapping[str, Any]

IGNORED = frozenset(
    {
        *("model", "user", "metadata", "store", "service_tier", "safety_identifier"),
        *("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty"),
        *("frequency_penalty", "repetition_penalty", "reasoning_effort", "verbosity"),
        *("parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention"),
    }
)
# Parameter -> the values with which it changes nothing; null always is one.
REFUSED: Mapping[str, Sequence[Any]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tool_choice": ("auto",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
READ = frozenset({"max_tokens", "stop", "stream", "stream_options"})
READ_OF_CHAT = READ | {"messages", "tools", "max_completion_tokens"}
READ_OF_TEXT = READ | {"prompt"}
ROLES = ("system", "user", "assistant", "tool")


class CallError(Exception):
    """Request that is not answered with a turn.

    Attributes:
        status: of HTTP.
        code: word for programs.
        param: name of the parameter; None where none is to blame.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_request",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


@dataclass(frozen=True, kw_only=True)
class Call:
    """Request for one turn.

    Example:
        Call(given=[{"role": "user", "content": "2+3="}], max_tokens=16, stream=True)

    Attributes:
        given: the whole history, as text or as chat messages.
        tools: schemas of functions, as OpenAI writes them; None where there are none.
        max_tokens: bound of this turn beside the run's; None sets none.
        stop: strings that end this turn beside the run's.
        stream: answer as server-sent events.
        stream_usage: the last event but one counts tokens.
        model: name that the answer repeats.
    """

    given: str | list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    stream_usage: bool = False
    model: str = ""


def chat_call(body: Body) -> Call:
    """Read a body of `/v1/chat/completions`.

    Raises:
        CallError: the body asks for something that is not done, or is no such body.
    """
    check_names(body, READ_OF_CHAT)
    tools = body.get("tools") or None
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    ):
        raise CallError("tools must be a list of function schemas", param="tools")
    limit = body.get("max_completion_tokens")
    return Call(
        given=read_messages(body.get("messages")),
        tools=tools,
        max_tokens=read_count(body, "max_tokens")
        if limit is None
        else read_count(body, "max_completion_tokens"),
        **_shared(body),
    )


def text_call(body: Body) -> Call:
    """Read a body of `/v1/completions`; errors as in `chat_call`."""
    check_names(body, READ_OF_TEXT)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise CallError("prompt must be one text that is not empty", param="prompt")
    return Call(given=prompt, max_tokens=read_count(body, "max_tokens"), **_shared(body))


def read_messages(messages: object) -> list[dict[str, Any]]:
    """Return chat messages as a session takes them: contents of text, or of parts with images.

    Raises:
        CallError: a value that is no list of messages, or a message with other contents.
    """
    if not isinstance(messages, list) or not messages:
        raise CallError("messages must be a list that is not empty", param="messages")
    read = [_message(number, message) for number, message in enumerate(messages)]
    if read[-1]["role"] == "assistant":
        raise CallError(
            "the last message is the assistant's; a turn can't be continued, only answered",
            param="messages",
        )
    return read


def _message(number: int, message: object) -> dict[str, Any]:
    place = f"messages[{number}]"
    if not isinstance(message, dict):
        raise CallError(f"{place} is not an object", param="messages")
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in ROLES:
        raise CallError(
            f"{place} has role {role!r}; known are {', '.join(ROLES)}", param="messages"
        )
    content = message.get("content")
    if role != "assistant" and isinstance(content, list) and any(map(is_image, content)):
        shown: object = _parts(place, content)
    else:
        shown = _text(place, content)
    read: dict[str, Any] = {"role": role, "content": shown}
    for name in ("name", "tool_call_id"):
        if isinstance(message.get(name), str):
            read[name] = message[name]
    if calls := message.get("tool_calls"):
        if not isinstance(calls, list):
            raise CallError(f"{place} has tool_calls that are no list", param="messages")
        read["tool_calls"] = [_tool_call(place, call) for call in calls]
    return read


def _parts(place: str, content: list[Any]) -> list[dict[str, Any]]:
    """Return the parts of a content that shows an image; images as `data:` addresses."""
    return [
        {"type": "image", "image": _address(place, part)}
        if is_image(part)
        else {"type": "text", "text": _text(place, [part])}
        for part in content
    ]


def _address(place: str, part: Mapping[str, Any]) -> str:
    """Return the address of an image; files of the worker and of other machines are not read."""
    given = part.get("image_url")
    address = given.get("url") if isinstance(given, dict) else given
    if not isinstance(address, str) or not address.startswith("data:"):
        raise CallError(
            f"{place} has an image without its data; send it as an image_url that begins with "
            "data:image/png;base64,",
            param="messages",
        )
    return address


def _text(place: str, content: object) -> str:
    """Return a content as text; parts of another type than text are refused."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts: list[Any] = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise CallError(
                f"{place} has content of type {kind!r}; only text and images are read",
                param="messages",
            )
    return "".join(part["text"] for part in parts)


def _tool_call(place: str, call: object) -> dict[str, Any]:
    """Return a call of a tool with its arguments as a mapping, which templates render."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise CallError(f"{place} has a tool call without a function", param="messages")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):  # otherwise as the policy wrote them
            arguments = json.loads(arguments or "{}")
    return {
        "id": str(call.get("id") or ""),
        "type": "function",
        "function": {"name": str(function.get("name") or ""), "arguments": arguments},
    }


def check_names(
    body: Body,
    read: frozenset[str],
    *,
    ignored: frozenset[str] = IGNORED,
    refused: Mapping[str, Sequence[Any]] = REFUSED,
) -> None:
    """Raise a `CallError` for the first parameter that asks for what is not done.

    Args:
        body: of a request.
        read: parameters that the caller reads.
        ignored: parameters without effect.
        refused: parameter -> values with which it changes nothing.
    """
    for name, value in body.items():
        if value is None or name in read or name in ignored:
            continue
        if name not in refused:
            raise CallError(f"parameter {name!r} is not supported; leave it out", param=name)
        if value not in refused[name]:
            raise CallError(
                f"{name}={value!r} is not supported; leave it out or say {refused[name][0]!r}",
                param=name,
            )


def read_stop(body: Body, name: str) -> tuple[str, ...]:
    """Return the strings that end a turn."""
    stop = body.get(name) or ()
    stop = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stop, list | tuple) or not all(isinstance(one, str) and one for one in stop):
        raise CallError(f"{name} must be a text or a list of texts", param=name)
    return tuple(stop)


def read_count(body: Body, name: str) -> int | None:
    """Return a whole number of at least 1, or None where there is none."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CallError(f"{name} must be a whole number of at least 1, got {value!r}", param=name)
    return value


def _shared(body: Body) -> dict[str, Any]:
    options = body.get("stream_options")
    return {
        "stop": read_stop(body, "stop"),
        "stream": body.get("stream") is True,
        "stream_usage": isinstance(options, dict) and options.get("include_usage") is True,
        "model": str(body.get("model") or "policy"),
    }
