"""Play an environment that may block: every rollout has a thread and an event loop of its own.

The thread belongs to the rollout worker's process. Calls of the session go to the worker's event
loop, which owns the token ids; so a game that computes, waits or hangs stops no other rollout.
Counts no time: a rollout is cancelled from outside, and its thread is then told to end.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from workers.rollout.environments.contract import (
    Environment,
    Message,
    Outcome,
    Prompt,
    Session,
    Task,
    Turn,
)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

CANCEL_S = 5.0  # for an environment that is cancelled; afterwards its thread gets `SystemExit`
EXIT_S = 2.0  # between two of these


class ThreadedEnvironment:
    """Environment that is played in threads.

    Args:
        environment: one object for all rollouts, whose `play` runs in several threads at once.
    """

    never_blocks = True

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    async def play(self, task: Task, session: Session) -> Outcome:
        """Play one rollout, and return or raise as the environment does."""
        thread = _PlayThread(self._environment, task, session)
        try:
            await asyncio.wait([thread.ended])
        except asyncio.CancelledError:
            await thread.end()
        return thread.ended.result()


class _PlayThread:
    """Thread of one rollout, which runs.

    Attributes:
        ended: future of the worker's event loop: outcome or error of the environment.
    """

    def __init__(self, environment: Environment, task: Task, session: Session) -> None:
        self._worker = asyncio.get_running_loop()
        self.ended: asyncio.Future[Outcome] = self._worker.create_future()
        self._environment, self._task = environment, task
        self._session = _ThreadedSession(session, self._worker)
        self._playing: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        self._cancelled = False
        self._lock = threading.Lock()  # of `_alive`: an identifier names another thread later
        self._alive = True
        # A thread that hangs must not keep the process from its end, hence a daemon.
        self._thread = threading.Thread(target=self._run, name="environment", daemon=True)
        self._thread.start()

    async def end(self) -> None:
        """Cancel the environment, again and again in harder ways; return when it ended."""
        self._cancelled = True
        self._cancel()
        await asyncio.wait([self.ended], timeout=CANCEL_S)
        while not self.ended.done():
            self._raise_exit()
            self._cancel()  # wakes a loop that waits, to its next step
            await asyncio.wait([self.ended], timeout=EXIT_S)

    def _cancel(self) -> None:
        if self._playing is not None:
            loop, playing = self._playing
            with suppress(RuntimeError):  # that loop was closed meanwhile
                loop.call_soon_threadsafe(playing.cancel)

    def _raise_exit(self) -> None:
        """Raise `SystemExit` in the thread, at its next step in Python."""
        with self._lock:
            if self._alive and self._thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread.ident), ctypes.py_object(SystemExit)
                )

    def _run(self) -> None:
        """Run the thread from its first step to its last."""
        try:
            asyncio.run(self._play())
        except BaseException as error:  # raised by `_raise_exit`, in the event loop's own steps
            self._settle(error)
        finally:
            with self._lock:
                self._alive = False

    async def _play(self) -> None:
        playing = asyncio.current_task()
        assert playing is not None
        self._playing = asyncio.get_running_loop(), playing
        try:
            if self._cancelled:  # before there was a task to cancel
                raise asyncio.CancelledError
            outcome = await self._environment.play(self._task, self._session)
        except BaseException as error:
            self._settle(error)
        else:
            self._settle(outcome)

    def _settle(self, end: Outcome | BaseException) -> None:
        """Hand the end over to the worker's event loop; the thread may go on a while."""
        with suppress(RuntimeError):  # that loop was closed: nobody waits
            self._worker.call_soon_threadsafe(_settle, self.ended, end)


def _settle(ended: asyncio.Future[Outcome], end: Outcome | BaseException) -> None:
    if ended.done():
        return
    if isinstance(end, BaseException):
        ended.set_exception(end)
        ended.exception()  # seen: asyncio need not report what a worker in its end asks for no more
    else:
        ended.set_result(end)


class _ThreadedSession:
    """Session for the thread of an environment: every change happens in the worker's event loop."""

    def __init__(self, session: Session, worker: asyncio.AbstractEventLoop) -> None:
        self._session, self._worker = session, worker

    @property
    def tokens(self) -> Sequence[int]:
        """See `contract.Session`."""
        return self._session.tokens

    @property
    def may_draw(self) -> bool:
        """See `contract.Session`."""
        return self._session.may_draw

    async def draw(
        self, *, max_tokens: int | None = None, stop: Sequence[str] = (), state: str = ""
    ) -> Turn:
        """See `contract.Session`."""
        return await self._await(self._session.draw(max_tokens=max_tokens, stop=stop, state=state))

    async def observe(self, messages: Sequence[Message]) -> None:
        """See `contract.Session`."""
        await self._await(self._session.observe(messages))

    def observe_tokens(self, ids: Sequence[int]) -> None:
        """See `contract.Session`."""
        self._call(self._session.observe_tokens, ids)

    async def reopen(
        self, messages: Prompt, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """See `contract.Session`."""
        await self._await(self._session.reopen(messages, tools=tools))

    def branch(self, keep: int, *, messages: Sequence[Message] = ()) -> Session:
        """See `contract.Session`."""
        return _ThreadedSession(
            self._call(self._session.branch, keep, messages=messages), self._worker
        )

    async def _await(self, call: Coroutine[Any, Any, Result]) -> Result:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._worker))

    def _call(
        self,
        function: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Call a function in the worker's event loop; block this thread until it returns."""

        async def called() -> Result:
            return function(*args, **kwargs)

        return asyncio.run_coroutine_threadsafe(called(), self._worker).result()
