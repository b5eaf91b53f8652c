"""Answer the calls of one rollout: each once, at most so many, until the rollout is over.

Runs in the rollout worker, between the HTTP server and the conversation. A call that is sent again
because its answer was lost is not sampled again. What ends the rollout (a flood of calls, a fault
of the engine) is left in `over`, for the environment that plays it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.rollout.endpoint.calls import Call, CallError
from workers.rollout.endpoint.conversation import Conversation, Reply


class FloodError(RuntimeError):
    """More requests than a rollout may make."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Reply on its way to the agent.

    Example: Answer(name="9f3c", reply=reply)
    """

    name: str
    reply: Reply


@dataclass(kw_only=True)
class _Asked:
    """Call that is answered at present, or whose answer did not arrive."""

    task: asyncio.Task[Answer]
    digest: str  # of the body
    kept: bool  # under a key of the agent's own: the answer is kept to the end


@dataclass(kw_only=True)
class RolloutCalls:
    """Calls of one rollout.

    Attributes:
        token: secret of the rollout's agent.
        conversation: the rollout.
        max_calls: requests with this rollout's token, refused ones included.
        over: done when the rollout can't go on, with the reason.
    """

    token: str
    conversation: Conversation
    max_calls: int
    over: asyncio.Future[None]
    num_calls: int = 0
    _asked: dict[str, _Asked] = field(default_factory=dict)

    def count(self) -> None:
        """Count a request.

        Raises:
            CallError: it is one too many; the rollout is over.
        """
        self.num_calls += 1
        if self.num_calls > self.max_calls:
            reason = f"more than {self.max_calls} requests (environment.player.max_calls)"
            self._end(FloodError(reason))
            raise CallError(f"the rollout is over: {reason}", code="too_many_calls")

    async def answer(self, call: Call, body: Mapping[str, Any], *, key: str | None) -> Answer:
        """Return the answer to a call; to a call that was sent again, the first one's.

        Args:
            call: as read.
            body: of the request. Equal bodies are one call while the answer has not arrived.
            key: of the request's own choice (`Idempotency-Key`): equal keys are one call always.

        Raises:
            CallError: the call is refused, or the rollout is over.
        """
        if self.over.done():
            raise CallError("the rollout is over", code="rollout_over")
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        name = digest if key is None else f"key {key}"
        asked = self._asked.get(name)
        if asked is None or (asked.task.done() and _failed(asked.task)):
            task = asyncio.create_task(self._reply(call))
            asked = self._asked[name] = _Asked(task=task, digest=digest, kept=key is not None)
        elif asked.digest != digest:
            raise CallError(f"Idempotency-Key {key!r} was used with another body", status=422)
        # One that hangs up does not end the call: the agent may ask again.
        return await asyncio.shield(asked.task)

    def delivered(self, answer: Answer) -> None:
        """Forget an answer that arrived: an equal body asks for another turn from now on."""
        for name, asked in list(self._asked.items()):
            if asked.kept or not asked.task.done() or _failed(asked.task):
                continue
            if asked.task.result() is answer:
                del self._asked[name]

    async def close(self) -> None:
        """End the calls that are answered at present."""
        running = [asked.task for asked in self._asked.values() if not asked.task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if not self.over.done():
            self.over.cancel()
        elif not self.over.cancelled():
            self.over.exception()  # seen: asyncio need not report it

    async def _reply(self, call: Call) -> Answer:
        try:
            return Answer(name=uuid.uuid4().hex, reply=await self.conversation.reply(call))
        except CallError:
            raise
        except Exception as error:
            self._end(error)
            raise CallError(
                "the engine can't go on with this rollout", status=503, code="rollout_over"
            ) from error

    def _end(self, error: Exception) -> None:
        if not self.over.done():
            self.over.set_exception(error)


def _failed(task: asyncio.Task[Answer]) -> bool:
    return task.cancelled() or task.exception() is not None
