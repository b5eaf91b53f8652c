"""Play one rollout in an environment that may raise, return nonsense, or never return.

An environment is a user's program: its faults cost one sample, with the reason. A fault of the
engine, which reaches the environment through `draw`, is no fault of the environment: it is raised
as it is, whatever the environment made of it. Runs in the rollout worker. Scores and retries
nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
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

# An engine raises these for tokens that it cannot continue, which the environment chose.
REFUSALS = (UnusableAnswerError, SpentError, TypeError, ValueError)


class EnvironmentFaultError(RuntimeError):
    """Fault of an environment in one rollout; the message is the reason of a failed sample."""


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
        self._since, self._num_drawing = 0.0, 0
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

    def check(self) -> None:
        """Raise what is wrong with the engine, so that nothing more is drawn."""
        if self.broken:
            raise self.broken[0]

    def fail(self, error: Exception) -> NoReturn:
        """Note an error of the engine, and raise it."""
        self.broken.append(error)
        raise error

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Stop the clock while a draw goes on, and note what is wrong with the engine."""
        loop = asyncio.get_running_loop()
        if not self._num_drawing:
            self._left_s -= loop.time() - self._since
            self._reschedule(None)
        self._num_drawing += 1
        try:
            yield
        except REFUSALS:
            raise
        except Exception as error:
            self.broken.append(error)
            raise
        finally:
            self._num_drawing -= 1
            if not self._num_drawing:
                self._since = loop.time()
                self._limit_s = min(self._stretch_s, max(self._left_s, 0.0))
                self._reschedule(self._since + self._limit_s)

    def _reschedule(self, when: float | None) -> None:
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(when)


async def play_guarded(
    environment: Environment, task: Task, session: Session, clock: EnvironmentClock
) -> Outcome:
    """Play one rollout.

    Args:
        environment: plays it.
        task: the row.
        session: the ids of the row.
        clock: stopped by the draws of the session.

    Raises:
        EnvironmentFaultError: the environment raised, took too long, or returned no outcome.
        SpentError: it drew beyond a budget.
        UnusableAnswerError: the engine's answer is no response, and the environment did not go on.
        Exception: any other error of a draw.
    """
    try:
        async with clock.start():
            outcome = await environment.play(task, session)
    except (UnusableAnswerError, SpentError):
        if clock.broken:
            raise clock.broken[0] from None
        raise
    except (Exception, SystemExit) as error:
        if clock.broken:
            raise clock.broken[0] from None
        if clock.expired:
            # An environment that knows more about its end adds a note to the cancellation.
            notes = getattr(error.__cause__, "__notes__", ())
            raise EnvironmentFaultError("; ".join((clock.reason, *notes))) from error
        raise EnvironmentFaultError(f"raised {reason_of(error)}") from error
    except asyncio.CancelledError as error:
        playing = asyncio.current_task()
        if playing is None or playing.cancelling():  # the whole group is aborted
            raise
        if clock.broken:
            raise clock.broken[0] from None
        raise EnvironmentFaultError(f"raised {reason_of(error)}") from error
    if clock.broken:
        raise clock.broken[0]
    try:
        return checked(outcome)
    except Exception as error:  # names and values of an outcome are the user's code, too
        fault = str(error) if isinstance(error, OutcomeFaultError) else reason_of(error)
        raise EnvironmentFaultError(f"returned {fault}") from error
