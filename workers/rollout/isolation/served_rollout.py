"""Serve one rollout that is played in another process: its calls of the session, and its end.

Runs in the event loop of the rollout worker, where the session is. Calls are made in the order in
which they come; the process gets their answers, or their errors. Ends no process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from workers.rollout.environments.contract import Outcome, Session, Task
from workers.rollout.environments.guarded_play import EnvironmentFaultError
from workers.rollout.isolation.frames import FrameFaultError, error_of, parts_of
from workers.rollout.isolation.process import EnvironmentProcess

CANCEL_S = 5.0  # for an environment that is cancelled; afterwards its process is killed
MOST_CALLS = 64  # of one rollout that wait for their answers; further ones are not read
ENDS = ("outcome", "fault", "raised")


class ServedRollout:
    """Rollout in another process.

    Args:
        process: plays it.
        session: of the rollout's first row.

    Attributes:
        over: True once the process has sent its last message of this rollout.
    """

    def __init__(self, process: EnvironmentProcess, session: Session) -> None:
        self._process = process
        self._rows = [session]
        self._calls: dict[int, asyncio.Task[None]] = {}
        self.over = False

    async def play(self, task: Task) -> Outcome:
        """Return the outcome, or raise the error, of the environment.

        Raises:
            EnvironmentFaultError: its outcome can't be recorded.
            ProcessGoneError: the process ended.
            FrameFaultError: it sent what is no message.
            asyncio.CancelledError: this call was cancelled, and perhaps goes on there.
        """
        await self._process.send(("play", task, self._process.most_bytes))
        ending = asyncio.create_task(self._serve())
        try:
            try:
                await asyncio.wait([ending])
            except asyncio.CancelledError:
                self._process.write(("cancel",))
                await asyncio.wait([ending], timeout=CANCEL_S)
                if not ending.done():
                    raise
            return _outcome_of(*ending.result())
        finally:
            for served in (ending, *self._calls.values()):
                served.cancel()

    async def _serve(self) -> tuple[str, Sequence[Any]]:
        """Make the calls that come; return the last message."""
        while True:
            word, *values = await self._process.receive()
            if word in ENDS:
                self.over = True
                return word, values
            try:
                if word == "call":
                    number, *call = values
                    if number in self._calls:
                        raise ValueError("two calls of one number")
                    self._calls[number] = asyncio.create_task(self._answer(number, *call))
                    self._calls[number].add_done_callback(self._forgetting(number))
                elif (call_of := self._calls.get(values[0])) is not None:
                    call_of.cancel()
            except (TypeError, LookupError, ValueError) as error:
                raise FrameFaultError(f"sent what is no message ({word})") from error
            while len(self._calls) >= MOST_CALLS:
                await asyncio.wait(self._calls.values(), return_when=asyncio.FIRST_COMPLETED)

    def _forgetting(self, number: int) -> Callable[[asyncio.Task[None]], None]:
        def forget(call: asyncio.Task[None]) -> None:
            del self._calls[number]
            if not call.cancelled():
                call.exception()  # that of a process which is gone, as the reader finds, too

        return forget

    async def _answer(self, number: int, row: int, method: str, arguments: Sequence[Any]) -> None:
        message: tuple[Any, ...]
        try:
            message = ("answer", number, await self._call(self._rows[row], method, arguments))
        except (Exception, asyncio.CancelledError) as error:
            message = ("refuse", number, *parts_of(error))
        if not self.over:  # its process plays another rollout soon
            await self._process.send(message)

    async def _call(self, session: Session, method: str, arguments: Sequence[Any]) -> Any:
        """Call a method of a session, or read a property; return a plain value."""
        if method == "tokens":
            return list(session.tokens)
        if method == "may_draw":
            return session.may_draw
        if method == "draw":
            most, stop, state = arguments
            turn = await session.draw(max_tokens=most, stop=stop, state=state)
            return turn.number, turn.text, tuple(turn.tokens), turn.finish_reason
        if method == "observe":
            return await session.observe(*arguments)
        if method == "observe_tokens":
            return session.observe_tokens(*arguments)
        if method == "reopen":
            messages, tools = arguments
            return await session.reopen(messages, tools=tools)
        if method == "branch":
            keep, messages = arguments
            self._rows.append(session.branch(keep, messages=messages))
            return len(self._rows) - 1
        raise ValueError(f"a session has no {method!r}")


def _outcome_of(word: str, values: Sequence[Any]) -> Outcome:
    """Return the outcome of a last message, or raise its error."""
    try:
        if word == "outcome":
            (columns,) = values
            return Outcome(**columns)
        if word == "fault":
            (reason,) = values
            error: BaseException = EnvironmentFaultError(f"returned {reason}")
        else:
            error = error_of(*values)
    except (TypeError, LookupError, ValueError, AttributeError) as fault:
        raise FrameFaultError(f"sent what is no message ({word})") from fault
    raise error
