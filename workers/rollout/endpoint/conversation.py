"""Turn the calls of one agent into turns of one rollout's session.

Runs in the rollout worker. A call whose history goes on from a row's end extends the row by what is
new; any other call opens a branch: a new row of the rollout, which shares the ids up to the place
from which the history goes on. What was sampled is kept as ids and never rendered; only where an
agent rewrote what stands before its first turn, or a turn itself, is its history rendered whole.
Knows neither HTTP nor the agent's process.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workers.rollout.endpoint.calls import Call, CallError
from workers.rollout.endpoint.pieces import Given, History, Place, Said, Thread, find_place
from workers.rollout.environments.contract import Prompt, Session, SpentError, Turn


class ToolReader(Protocol):
    """Interface of what finds calls of tools in a turn (`turn_reader.TurnReader`)."""

    def check(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """Raise a ValueError for schemas that are none."""

    def read(
        self, turn: Turn, tools: Sequence[Mapping[str, Any]]
    ) -> tuple[str, list[dict[str, Any]]]:
        """Return what a turn says beside its calls, and the calls as OpenAI writes them."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Turn as an answer to a call.

    Example:
        Reply(
            turn=Turn(number=1, text="5", tokens=(55, 2), finish_reason="stop"),
            text="5",
            tool_calls=[],
            prompt_tokens=4,
        )

    Attributes:
        text: of the turn, up to a stop string of the call and without calls of tools.
        tool_calls: as OpenAI writes them.
        prompt_tokens: ids before the turn.
    """

    turn: Turn
    text: str
    tool_calls: Sequence[dict[str, Any]]
    prompt_tokens: int


class Conversation:
    """All threads of one rollout.

    Args:
        session: root row, with the ids of the prompt.
        prompt: of the root row.
        reader: finds calls of tools in a turn; None: a call with tools is refused.

    Attributes:
        last_text: text of the latest turn.
    """

    def __init__(self, session: Session, prompt: Prompt, *, reader: ToolReader | None) -> None:
        self._root, self._prompt, self._reader = session, prompt, reader
        self._threads: list[Thread] = []
        self._placing = asyncio.Lock()
        self.last_text: str | None = None

    async def reply(self, call: Call) -> Reply:
        """Sample the turn that a call asks for.

        Raises:
            CallError: the call asks for something that can't be done in this rollout.
            Exception: the engine's fault.
        """
        self._check_tools(call)
        # Calls that come together must see each other's places.
        async with self._placing:
            thread = await self._open(call)
            row: Session = thread.row
            start = len(row.tokens)
            thread.pieces.append(Said(forms=(), start=start, end=start))
            place = len(thread.pieces) - 1
        try:
            turn = await row.draw(max_tokens=call.max_tokens, stop=call.stop)
        except SpentError as error:
            raise CallError(f"the rollout is over: {error}", code="budget_spent") from error
        except (TypeError, ValueError) as error:
            raise CallError(str(error), code="context_length_exceeded") from error
        text = _before_stop(turn.text, call.stop)
        tool_calls: list[dict[str, Any]] = []
        if call.tools and self._reader is not None:
            text, tool_calls = self._reader.read(turn, call.tools)
        reply = Reply(turn=turn, text=text, tool_calls=tool_calls, prompt_tokens=start)
        thread.pieces[place] = Said(
            forms=_forms(call.given, turn, reply), start=start, end=start + len(turn.tokens)
        )
        self.last_text = turn.text
        return reply

    def _check_tools(self, call: Call) -> None:
        if not call.tools:
            return
        if self._reader is None:
            raise CallError(
                "this run reads no calls of tools; set environment.player.tool_parser",
                param="tools",
            )
        try:
            self._reader.check(call.tools)
        except ValueError as error:
            raise CallError(f"tools can't be read: {error}", param="tools") from error

    async def _open(self, call: Call) -> Thread:
        """Return the thread whose row ends where the turn of a call begins."""
        place = find_place(self._threads, call.given, call.tools)
        try:
            if place is None:
                thread = await self._begin(call)
            else:
                thread = await self._go_on(place, call.given)
        except (TypeError, ValueError) as error:
            raise CallError(str(error), param="messages") from error
        return thread

    async def _begin(self, call: Call) -> Thread:
        """Open a row for a history that shares no turn's place with another."""
        first = not self._threads
        row = self._root if first else self._root.branch(0)
        if not first or call.tools or call.given != self._prompt:
            await row.reopen(call.given, tools=call.tools)
        thread = Thread(row=row, tools=call.tools, pieces=[Given(content=call.given)])
        self._threads.append(thread)
        return thread

    async def _go_on(self, place: Place, given: History) -> Thread:
        """Extend a row from its end, or branch off from another place of it."""
        thread, new = place.thread, given[place.used :]
        if not place.is_end:
            before = () if isinstance(given, str) else given[: place.used]
            thread = Thread(
                row=thread.row.branch(place.keep, messages=before),
                tools=thread.tools,
                pieces=thread.pieces[: place.num_pieces],
            )
            self._threads.append(thread)
        if new:
            await thread.row.observe(
                [{"role": "user", "content": new}] if isinstance(new, str) else new
            )
            thread.pieces.append(Given(content=new))
        return thread


def _before_stop(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the first of the stop strings in it."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else text


def _forms(given: History, turn: Turn, reply: Reply) -> Sequence[str] | dict[str, Any]:
    """Return the forms in which the agent may send a turn back."""
    if isinstance(given, str):
        # A stop string that the agent writes itself is in the row already.
        return sorted({turn.text, reply.text}, key=len, reverse=True)
    said: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.tool_calls:
        said["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _mapping(call)}}
            for call in reply.tool_calls
        ]
    return said


def _mapping(call: dict[str, Any]) -> Any:
    """Return the arguments of a call as `calls.read_messages` reads them."""
    try:
        return json.loads(call["function"]["arguments"])
    except ValueError:
        return call["function"]["arguments"]
