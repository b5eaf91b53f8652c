"""Read requests and write answers of Anthropic's messages (`/v1/messages`).

Runs in the rollout worker, under its HTTP server. Requests become the same `Call` as OpenAI's chat
completions, so a rollout may be played in either format. Thoughts that a client sends back are left
out, as templates leave thoughts out of a history.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workers.data.images.prompt_images import is_image
from workers.rollout.endpoint.calls import (
    IGNORED,
    Body,
    Call,
    CallError,
    check_names,
    read_count,
    read_messages,
    read_stop,
)
from workers.rollout.endpoint.conversation import Reply

READ = frozenset({"messages", "system", "tools", "max_tokens", "stop_sequences", "stream"})
IGNORED_HERE = IGNORED | {"thinking", "cache_control", "context_management", "output_config"}
REFUSED: Mapping[str, Sequence[Any]] = {"tool_choice": ({"type": "auto"},)}


def messages_call(body: Body) -> Call:
    """Read a body of `/v1/messages`.

    Raises:
        CallError: the body asks for something that is not done, or is no such body.
    """
    check_names(body, READ, ignored=IGNORED_HERE, refused=REFUSED)
    messages: list[Any] = []
    if body.get("system"):
        messages.append({"role": "system", "content": body["system"]})
    sent, tools = body.get("messages"), body.get("tools") or []
    if not isinstance(tools, list):
        raise CallError("tools must be a list of schemas with input_schema", param="tools")
    for message in sent if isinstance(sent, list) else []:
        messages += _as_chat(message)
    return Call(
        given=read_messages(messages),
        tools=[_as_function(tool) for tool in tools] or None,
        max_tokens=read_count(body, "max_tokens"),
        stop=read_stop(body, "stop_sequences"),
        stream=body.get("stream") is True,
        model=str(body.get("model") or "policy"),
    )


def messages_body(name: str, call: Call, reply: Reply) -> dict[str, Any]:
    """Return the body of an answer.

    Args:
        name: of the answer.
        call: answered.
        reply: to it.
    """
    content: list[dict[str, Any]] = []
    if reply.text or not reply.tool_calls:
        content.append({"type": "text", "text": reply.text})
    content += [
        {
            "type": "tool_use",
            "id": call["id"],
            "name": call["function"]["name"],
            "input": json.loads(call["function"]["arguments"]),
        }
        for call in reply.tool_calls
    ]
    return {
        "id": f"msg_{name}",
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": content,
        "stop_reason": _stop_reason(reply),
        "stop_sequence": None,
        "usage": {
            "input_tokens": reply.prompt_tokens,
            "output_tokens": len(reply.turn.tokens),
        },
    }


def messages_events(name: str, call: Call, reply: Reply) -> Iterator[str]:
    """Yield the events of an answer, one delta for each block; arguments as for `messages_body`."""
    whole = messages_body(name, call, reply)
    start = {**whole, "content": [], "stop_reason": None}
    start["usage"] = {**whole["usage"], "output_tokens": 0}
    yield _event("message_start", message=start)
    for index, block in enumerate(whole["content"]):
        if block["type"] == "text":
            empty: dict[str, Any] = {**block, "text": ""}
            delta = {"type": "text_delta", "text": block["text"]}
        else:
            empty = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        yield _event("content_block_start", index=index, content_block=empty)
        yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    ended = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield _event("message_delta", delta=ended, usage=whole["usage"])
    yield _event("message_stop")


def _as_chat(message: Any) -> list[Any]:
    """Return one of Anthropic's messages as chat messages: results of tools are their own."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        return [message]
    rest = [block for block in content if block.get("type") not in ("tool_result", "tool_use")]
    rest = [block for block in rest if block.get("type") not in ("thinking", "redacted_thinking")]
    rest = _with_images(rest)
    results = [
        {
            "role": "tool",
            "tool_call_id": block.get("tool_use_id"),
            "content": _with_images(block.get("content")),
        }
        for block in content
        if block.get("type") == "tool_result"
    ]
    calls = [
        {
            "id": block.get("id"),
            "function": {"name": block.get("name"), "arguments": block.get("input")},
        }
        for block in content
        if block.get("type") == "tool_use"
    ]
    if results and not rest:
        return results
    own = {"role": message.get("role"), "content": rest}
    return [*results, {**own, "tool_calls": calls} if calls else own]


def _with_images(content: Any) -> Any:
    """Return a content whose images stand as OpenAI writes them."""
    if not isinstance(content, list):
        return content
    return [_image(block) if is_image(block) else block for block in content]


def _image(block: Mapping[str, Any]) -> dict[str, Any]:
    source = block.get("source")
    found = source if isinstance(source, dict) else {}
    if found.get("type") == "base64":
        address = f"data:{found.get('media_type')};base64,{found.get('data')}"
        return {"type": "image_url", "image_url": {"url": address}}
    return {"type": "image_url", "image_url": {"url": found.get("url")}}


def _as_function(tool: Any) -> dict[str, Any]:
    """Return the schema of a tool as OpenAI writes it."""
    if not isinstance(tool, dict) or "input_schema" not in tool:
        raise CallError("tools must be a list of schemas with input_schema", param="tools")
    function = {"name": tool.get("name"), "parameters": tool["input_schema"]}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _stop_reason(reply: Reply) -> str:
    if reply.tool_calls:
        return "tool_use"
    return "max_tokens" if reply.turn.finish_reason == "length" else "end_turn"


def _event(kind: str, **values: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n"
