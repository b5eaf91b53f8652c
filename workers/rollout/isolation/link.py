"""Send the calls of one rollout from the process of an environment to the rollout worker.

`Link` numbers the calls and hands out the answers; `RemoteSession` is the `Session` that the
environment sees. Both run in the process of the environment, in any of its threads. Ids, seeds and
budgets are the worker's, which owns the session.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from workers.rollout.environments.contract import Message, Prompt, Session, Turn
from workers.rollout.isolation.frames import error_of, pack, plain


class Link:
    """Calls of one rollout.

    Args:
        send: writes a frame to the worker.
        most_bytes: longest message that the worker takes.
    """

    def __init__(self, send: Callable[[bytes], None], *, most_bytes: int) -> None:
        self._send, self._most_bytes = send, most_bytes
        self._waiting: dict[int, Future[Any]] = {}
        self._sending = threading.Lock()  # never held where an answer is taken
        self._num_calls, self._over = 0, False

    async def call(self, row: int, method: str, *arguments: Any) -> Any:
        """Call a method of a row's session; return its answer, or raise its error."""
        number, answer = self._begin(row, method, arguments)
        try:
            return await asyncio.wrap_future(answer)
        except asyncio.CancelledError:
            if not answer.done():
                self._drop(number)
            raise

    def ask(self, row: int, method: str, *arguments: Any) -> Any:
        """Call as `call` does; block the thread until the answer is there."""
        return self._begin(row, method, arguments)[1].result()

    def settle(self, number: int, value: Any) -> None:
        """Hand out the answer to a call."""
        if (answer := self._waiting.pop(number, None)) is not None:
            answer.set_result(value)

    def refuse(self, number: int, *parts: Any) -> None:
        """Raise the error of a call, of which `parts_of` made the parts, where it was made."""
        if (answer := self._waiting.pop(number, None)) is not None:
            answer.set_exception(error_of(*parts))

    def end(self, message: tuple[Any, ...]) -> None:
        """Send the last message of the rollout, once; calls that come later raise RuntimeError.

        Raises:
            FrameTooLongError: the message has more bytes than the worker takes.
        """
        frame = pack(message, most_bytes=self._most_bytes)
        with self._sending:
            if not self._over:
                self._over = True
                self._send(frame)

    def _begin(self, row: int, method: str, arguments: tuple[Any, ...]) -> tuple[int, Future[Any]]:
        values = plain(arguments)
        answer: Future[Any] = Future()
        answer.set_running_or_notify_cancel()  # an answer that nobody waits for is no fault
        with self._sending:
            if self._over:
                raise RuntimeError("the rollout is over")
            number = self._num_calls
            frame = pack(("call", number, row, method, values), most_bytes=self._most_bytes)
            self._num_calls += 1
            self._waiting[number] = answer
            self._send(frame)
        return number, answer

    def _drop(self, number: int) -> None:
        """Tell the worker that nobody waits for the answer to a call."""
        self._waiting.pop(number, None)
        with self._sending:
            if not self._over:
                self._send(pack(("drop", number)))


class RemoteSession:
    """Session of a row, which the rollout worker holds.

    Args:
        link: to the worker.
        row: number of the row among those of the rollout.
    """

    def __init__(self, link: Link, row: int = 0) -> None:
        self._link, self._row = link, row

    @property
    def tokens(self) -> Sequence[int]:
        """See `contract.Session`."""
        tokens: list[int] = self._link.ask(self._row, "tokens")
        return tokens

    @property
    def may_draw(self) -> bool:
        """See `contract.Session`."""
        return bool(self._link.ask(self._row, "may_draw"))

    async def draw(
        self, *, max_tokens: int | None = None, stop: Sequence[str] = (), state: str = ""
    ) -> Turn:
        """See `contract.Session`."""
        number, text, tokens, reason = await self._link.call(
            self._row, "draw", max_tokens, tuple(stop), state
        )
        return Turn(number=number, text=text, tokens=tokens, finish_reason=reason)

    async def observe(self, messages: Sequence[Message]) -> None:
        """See `contract.Session`."""
        await self._link.call(self._row, "observe", list(messages))

    def observe_tokens(self, ids: Sequence[int]) -> None:
        """See `contract.Session`."""
        self._link.ask(self._row, "observe_tokens", [int(each) for each in ids])

    async def reopen(
        self, messages: Prompt, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """See `contract.Session`."""
        schemas = None if tools is None else list(tools)
        await self._link.call(self._row, "reopen", messages, schemas)

    def branch(self, keep: int, *, messages: Sequence[Message] = ()) -> Session:
        """See `contract.Session`."""
        row = self._link.ask(self._row, "branch", int(keep), list(messages))
        return RemoteSession(self._link, row)
