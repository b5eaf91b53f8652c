"""Serve the rollouts of one worker over HTTP, by the protocols of OpenAI and Anthropic.

Runs on the event loop of the rollout worker, on a port of its own. The path names a session, whose
secret token every request carries: `/s/<session>/v1/chat/completions`. A request is read, counted,
answered from the rollout's session, and written; what a call means is not decided here. There is no
TLS: the address must be inside the cluster's private network.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from workers.addresses import join_port
from workers.rollout.endpoint import replies
from workers.rollout.endpoint.calls import Call, CallError, chat_call, text_call
from workers.rollout.endpoint.conversation import Reply
from workers.rollout.endpoint.messages_format import (
    messages_body,
    messages_call,
    messages_events,
)
from workers.rollout.endpoint.rollout_calls import Answer, RolloutCalls


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of calls and answers.

    Attributes:
        read: body of a request -> call.
        body: name of the answer, call, reply -> body of the answer.
        events: the same -> events of a stream.
    """

    read: Callable[[Mapping[str, Any]], Call]
    body: Callable[[str, Call, Reply], dict[str, Any]]
    events: Callable[[str, Call, Reply], Iterator[str]]


FORMATS: Mapping[str, Format] = {
    "/chat/completions": Format(read=chat_call, body=replies.chat_body, events=replies.chat_events),
    "/messages": Format(read=messages_call, body=messages_body, events=messages_events),
    "/completions": Format(read=text_call, body=replies.text_body, events=replies.text_events),
}


class Endpoint:
    """HTTP server of one rollout worker.

    Args:
        max_body_bytes: longest body of a request.
    """

    def __init__(self, *, max_body_bytes: int) -> None:
        self._open: dict[str, RolloutCalls] = {}
        self._app = web.Application(client_max_size=max_body_bytes, middlewares=[_errors_as_json])
        for path, form in FORMATS.items():
            self._app.router.add_post(f"/s/{{session}}/v1{path}", self._handler(form))
        self._app.router.add_get("/s/{session}/v1/models", self._models)
        self._runner = web.AppRunner(self._app, access_log=None)
        self._address = ""

    async def start(self, host: str) -> None:
        """Listen on a free port of one address of this node."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, 0, backlog=1024)
        await site.start()
        self._address = join_port(host, self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the port and every connection."""
        await self._runner.cleanup()

    def open(self, calls: RolloutCalls) -> str:
        """Admit the calls of a rollout; return the URL of its session, without `/v1`."""
        name = secrets.token_hex(8)
        self._open[name] = calls
        return f"http://{self._address}/s/{name}"

    async def close(self, url: str) -> None:
        """Refuse the calls of a rollout from now on; end those that are answered at present."""
        await self._open.pop(url.rpartition("/")[2]).close()

    def _calls(self, request: web.Request) -> RolloutCalls:
        """Return the rollout of a request, counted; 401 without the right session and token."""
        calls = self._open.get(request.match_info["session"])
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        given = given or request.headers.get("x-api-key", "")
        sent = given.encode(errors="backslashreplace")  # a header may hold any byte
        if calls is None or not hmac.compare_digest(calls.token.encode(), sent):
            raise CallError("no such session, or a wrong token", status=401, code="unauthorized")
        calls.count()
        return calls

    def _handler(self, form: Format) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            calls = self._calls(request)
            body = await _body(request)
            call = form.read(body)
            answer = await calls.answer(call, body, key=request.headers.get("Idempotency-Key"))
            response = await _write(request, form, call, answer)
            if request.transport is not None and not request.transport.is_closing():
                calls.delivered(answer)
            return response

        return handle

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self._calls(request)
        return web.json_response(replies.model_list())


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:
        raise CallError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise CallError("the body is not a JSON object")
    return body


async def _write(
    request: web.Request, form: Format, call: Call, answer: Answer
) -> web.StreamResponse:
    """Send an answer, whole or as events; raise `ConnectionError` where the agent is gone."""
    if not call.stream:
        response: web.StreamResponse = web.json_response(form.body(answer.name, call, answer.reply))
        await response.prepare(request)
        await response.write_eof()
        return response
    response = web.StreamResponse(headers={"Cache-Control": "no-cache"})
    response.content_type = "text/event-stream"
    await response.prepare(request)
    for event in form.events(answer.name, call, answer.reply):
        await response.write(event.encode())
    await response.write_eof()
    return response


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Any]
) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except CallError as error:
        return web.json_response(replies.error_body(error), status=error.status)
    except web.HTTPException as error:  # a path that is not served, a body that is too long
        refused = CallError(error.reason, status=error.status, code=f"http_{error.status}")
        return web.json_response(replies.error_body(refused), status=error.status)
    return response
