"""Write replies and errors as OpenAI's chat completions and completions, whole or as events.

Runs in the rollout worker, under its HTTP server. A stream has all of a turn in one event: a turn
is sent when it is complete.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from workers.rollout.endpoint.calls import Call, CallError
from workers.rollout.endpoint.conversation import Reply

MODEL = "policy"  # name in /v1/models; every other name is accepted too


def model_list() -> dict[str, Any]:
    """Return the body of `/v1/models`."""
    card = {"id": MODEL, "object": "model", "created": 0, "owned_by": "ballast"}
    return {"object": "list", "data": [card]}


def error_body(error: CallError) -> dict[str, Any]:
    """Return an error, as OpenAI's and as Anthropic's clients read it."""
    kind = "authentication_error" if error.status == 401 else "invalid_request_error"
    kind = kind if error.status < 500 else "api_error"
    return {
        "type": "error",
        "error": {"message": str(error), "type": kind, "param": error.param, "code": error.code},
    }


def chat_body(name: str, call: Call, reply: Reply) -> dict[str, Any]:
    """Return the body of a chat completion.

    Args:
        name: of the answer.
        call: answered.
        reply: to it.
    """
    return {
        **_head(f"chatcmpl-{name}", "chat.completion", call),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", **_said(reply)},
                "finish_reason": finish_reason(reply),
                "logprobs": None,
            }
        ],
        "usage": usage(reply),
    }


def chat_events(name: str, call: Call, reply: Reply) -> Iterator[str]:
    """Yield the events of a chat completion: the turn, its end, the count of tokens, the mark."""
    said = _said(reply)
    if reply.tool_calls:
        said["tool_calls"] = [
            {"index": number, **one} for number, one in enumerate(reply.tool_calls)
        ]
    head = _head(f"chatcmpl-{name}", "chat.completion.chunk", call)
    for delta, reason in (({"role": "assistant", **said}, None), ({}, finish_reason(reply))):
        yield _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
    if call.stream_usage:
        yield _event({**head, "choices": [], "usage": usage(reply)})
    yield "data: [DONE]\n\n"


def text_body(name: str, call: Call, reply: Reply) -> dict[str, Any]:
    """Return the body of a completion; arguments as for `chat_body`."""
    choice = {"index": 0, "text": reply.text, "finish_reason": finish_reason(reply)}
    return {
        **_head(f"cmpl-{name}", "text_completion", call),
        "choices": [{**choice, "logprobs": None}],
        "usage": usage(reply),
    }


def text_events(name: str, call: Call, reply: Reply) -> Iterator[str]:
    """Yield the events of a completion: the turn, the count of tokens, the mark."""
    whole = text_body(name, call, reply)
    counted = {**whole, "choices": []}
    del whole["usage"]
    yield _event(whole)
    if call.stream_usage:
        yield _event(counted)
    yield "data: [DONE]\n\n"


def usage(reply: Reply) -> dict[str, int]:
    """Return the tokens of a reply, as the row of the rollout counts them."""
    drawn = len(reply.turn.tokens)
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": drawn,
        "total_tokens": reply.prompt_tokens + drawn,
    }


def finish_reason(reply: Reply) -> str:
    """Return "tool_calls" for a turn that calls tools, otherwise the turn's own reason."""
    return "tool_calls" if reply.tool_calls else reply.turn.finish_reason


def _said(reply: Reply) -> dict[str, Any]:
    if not reply.tool_calls:
        return {"content": reply.text}
    return {"content": reply.text or None, "tool_calls": list(reply.tool_calls)}


def _head(name: str, kind: str, call: Call) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": int(time.time()), "model": call.model}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
