"""Play one rollout in an environment that may raise, return nonsense, or never return.

An environment is a user's program: its faults cost one sample, with the reason. A fault of the
engine, which reaches the environment through `draw`, is no fault of the environment: it is raised
as it is, whatever the environment made of it. An environment that goes on after it was cancelled is
left behind: it draws no more, and nothing waits for it. Runs in the rollout worker. Scores and
retries nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from workers.data.trajectory import reason_of
from workers.engines.vllm.answers import UnusableAnswerError
from workers.rollout.environments.contract import (
    Environment,
    Outcome,
    Session,
    SpentError,
    Task,
)
from workers.rollout.environments.outcome_check import OutcomeFaultError, checked
from workers.rollout.environments.unended import Unended

# An engine raises these for tokens that it cannot continue, which the environment chose.
REFUSALS = (UnusableAnswerError, SpentError, TypeError, ValueError)
END_S = 15.0  # for an environment that was cancelled: as long as an agent's end may take
AGAIN_S = 1.0  # before a draw of a rollout that is over raises, which may be a loop of retries


class EnvironmentFaultError(RuntimeError):
    """Fault of an environment in one rollout; the message is the reason of a failed sample."""


class RolloutOverError(RuntimeError):
    """Draw of an environment whose rollout is over."""


class EnvironmentClock:
    """Clock of the time that an environment takes beside its draws.

    Args:
        stretch_s: longest time in seconds before, between and after the draws.
        total_s: of all these times together; None sets no limit on their sum.

    Attributes:
        broken: what is wrong with the engine, in the order in which draws found it.
    """

    def __init__(self, *, stretch_s: float, total_s: float | None = None) -> None:
        self._stretch_s = stretch_s
        self._left_s = math.inf if total_s is None else total_s
        self._limit_s = min(self._stretch_s, self._left_s)
        self._since, self._closed = 0.0, False
        self._drawing: set[asyncio.Task[object] | None] = set()
        self._timeout: asyncio.Timeout | None = None  # before `start`
        self.broken: list[Exception] = []

    @property
    def expired(self) -> bool:
        """True where the environment took too long."""
        return self._timeout is not None and self._timeout.expired()

    @property
    def reason(self) -> str:
        """The limit in words."""
        return f"took longer than {self._limit_s:g} s"

    def start(self) -> asyncio.Timeout:
        """Begin to count; return the context in which the environment plays."""
        self._since = asyncio.get_running_loop().time()
        self._timeout = asyncio.timeout(self._limit_s)
        return self._timeout

    async def check(self) -> None:
        """Let the event loop go on; raise what is wrong, so that nothing more is drawn.

        An environment may catch all that a draw raises and draw again, without an end.

        Raises:
            RolloutOverError: the clock was closed.
            Exception: what is wrong with the engine.
        """
        await asyncio.sleep(AGAIN_S if self._closed or self.broken else 0.0)
        if self._closed:
            raise RolloutOverError("the rollout is over")
        if self.broken:
            raise self.broken[0]

    def close(self) -> None:
        """Cancel the draws that go on, and let no other begin."""
        self._closed = True
        for task in self._drawing:
            if task is not None:
                task.cancel()

    def fail(self, error: Exception) -> NoReturn:
        """Note an error of the engine, and raise it."""
        self.broken.append(error)
        raise error

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Stop the clock while a draw goes on, and note what is wrong with the engine."""
        loop = asyncio.get_running_loop()
        if not self._drawing:
            self._left_s -= loop.time() - self._since
            self._reschedule(None)
        task = asyncio.current_task()
        self._drawing.add(task)
        try:
            yield
        except REFUSALS:
            raise
        except Exception as error:
            self.broken.append(error)
            raise
        finally:
            self._drawing.discard(task)
            if not self._drawing and not self._closed:
                self._since = loop.time()
                self._limit_s = min(self._stretch_s, max(self._left_s, 0.0))
                self._reschedule(self._since + self._limit_s)

    def _reschedule(self, when: float | None) -> None:
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(when)


async def play_guarded(
    environment: Environment,
    task: Task,
    session: Session,
    clock: EnvironmentClock,
    unended: Unended,
) -> Outcome:
    """Play one rollout.

    Args:
        environment: plays it.
        task: the row.
        session: the ids of the row.
        clock: stopped by the draws of the session; closed when this call ends.
        unended: gets the rollout if it goes on after it was cancelled.

    Raises:
        EnvironmentFaultError: the environment raised, took too long, or returned no outcome; or
            too many others did not end.
        SpentError: it drew beyond a budget.
        UnusableAnswerError: the engine's answer is no response, and the environment did not go on.
        Exception: any other error of a draw.
    """
    if unended.full:
        raise EnvironmentFaultError(f"{len(unended)} other rollouts do not end")
    playing = asyncio.create_task(_contained(environment, task, session))
    with suppress(TimeoutError):
        async with clock.start():
            await _ended(playing, clock, unended)
    if clock.broken:
        raise clock.broken[0]
    if not playing.done():
        raise EnvironmentFaultError(f"{clock.reason}, and does not end")
    try:
        outcome = playing.result()
    except (UnusableAnswerError, SpentError):
        raise
    except (Exception, asyncio.CancelledError) as error:
        if clock.expired:
            # An environment that knows more about its end adds a note to the cancellation.
            notes = getattr(error, "__notes__", ())
            raise EnvironmentFaultError("; ".join((clock.reason, *notes))) from error
        if isinstance(error, EnvironmentFaultError):
            raise
        raise EnvironmentFaultError(f"raised {reason_of(error)}") from error
    try:
        return checked(outcome)
    except Exception as error:  # names and values of an outcome are the user's code, too
        fault = str(error) if isinstance(error, OutcomeFaultError) else reason_of(error)
        raise EnvironmentFaultError(f"returned {fault}") from error


async def _contained(environment: Environment, task: Task, session: Session) -> object:
    """Play, and keep from the event loop what would end it."""
    try:
        return await environment.play(task, session)
    except (SystemExit, KeyboardInterrupt) as error:
        raise EnvironmentFaultError(f"raised {reason_of(error)}") from error


async def _ended(playing: asyncio.Task[object], clock: EnvironmentClock, unended: Unended) -> None:
    """Wait for an environment; where this wait is cancelled, end the environment."""
    try:
        await asyncio.wait([playing])
    finally:
        clock.close()
        if not playing.done():
            playing.cancel()
            try:
                await asyncio.wait([playing], timeout=END_S)
            finally:
                if not playing.done():
                    unended.add(playing)
        if playing.done() and not playing.cancelled():
            playing.exception()  # seen: asyncio need not report it
