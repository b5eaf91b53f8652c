"""Play an environment in processes of its own: each rollout has one, which is used again.

`ProcessEnvironment` stands in the rollout worker for the environment. A process that crashes, exits
or is killed costs the rollout that it plays; one that goes on after its cancellation is killed.
There are as many processes as rollouts were ever played at once. Owns no token id.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

from workers.reward.process import START_LIMIT_S, ProcessDiedError
from workers.rollout.environments.contract import Environment, Outcome, Session, Task
from workers.rollout.environments.guarded_play import EnvironmentFaultError
from workers.rollout.isolation import served_rollout
from workers.rollout.isolation.frames import FrameFaultError, error_of, load_plain, read_frame
from workers.rollout.isolation.nursery import Nursery
from workers.rollout.isolation.process import EnvironmentProcess, ProcessGoneError, end_in_words
from workers.rollout.isolation.served_rollout import ServedRollout

READY = "ready"
NUM_STARTS = 8  # processes that start at a time


class ProcessEnvironment:
    """Environment that is played in other processes.

    Args:
        environment: picklable; built once in each process.
        most_bytes: longest message of a process.

    Raises:
        ValueError: the environment can't be sent to another process.
        RuntimeError: it can't be built there.
    """

    never_blocks = True

    def __init__(self, environment: Environment, *, most_bytes: int) -> None:
        self._name, self._most_bytes = type(environment).__name__, most_bytes
        self._pickled = _pickle(environment)
        self._nursery = Nursery(self._pickled)
        self._renewing = threading.Lock()
        self._starts = ThreadPoolExecutor(NUM_STARTS, thread_name_prefix="environments")
        self._ends = ThreadPoolExecutor(1, thread_name_prefix="environment-ends")
        self._idle: list[EnvironmentProcess] = []
        self._settling: set[asyncio.Task[None]] = set()
        try:
            self._idle.append(self._start())  # now, so that what can't be built fails here
        except BaseException:
            self.close()
            raise

    async def play(self, task: Task, session: Session) -> Outcome:
        """Play one rollout, and return or raise as the environment does.

        Raises:
            EnvironmentFaultError: the process of the rollout ended, or can't start.
        """
        process = await self._take()
        rollout = ServedRollout(process, session)
        try:
            return await rollout.play(task)
        except ProcessGoneError as error:
            raise EnvironmentFaultError(await self._end(process, kill=False)) from error
        except FrameFaultError as error:
            raise EnvironmentFaultError(str(error)) from error
        except asyncio.CancelledError as error:
            if not rollout.over:
                error.add_note("its process was killed")
            raise
        finally:
            if rollout.over:
                settling = asyncio.create_task(self._settle(process))
                self._settling.add(settling)
                settling.add_done_callback(self._settling.discard)
            elif not process.closed:
                await self._end(process, kill=True)

    def close(self) -> None:
        """End every process."""
        self._nursery.kill()
        self._starts.shutdown(wait=False, cancel_futures=True)
        self._ends.shutdown(wait=False)

    async def _take(self) -> EnvironmentProcess:
        """Return an idle process, or a new one.

        Raises:
            EnvironmentFaultError: none can start.
        """
        while self._idle:
            process = self._idle.pop()
            await process.open()
            if process.lives:
                return process
            await self._end(process, kill=True)
        starting = asyncio.get_running_loop().run_in_executor(self._starts, self._start)
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._keep)
            raise
        except (FrameFaultError, OSError, ProcessDiedError, RuntimeError) as error:
            raise EnvironmentFaultError(f"its process can't start: {error}") from error
        await process.open()
        return process

    def _keep(self, started: asyncio.Future[EnvironmentProcess]) -> None:
        """Keep a process that nobody waits for any more."""
        if not started.cancelled() and started.exception() is None:
            self._idle.append(started.result())

    async def _settle(self, process: EnvironmentProcess) -> None:
        """Keep a process for another rollout once all of the last one has ended there."""
        try:
            async with asyncio.timeout(served_rollout.CANCEL_S):
                ready = (await process.receive())[0] == READY
        except (TimeoutError, ProcessGoneError, FrameFaultError):
            ready = False
        if ready:
            self._idle.append(process)
        else:
            await self._end(process, kill=True)

    async def _end(self, process: EnvironmentProcess, *, kill: bool) -> str:
        """End a process; return its end in words."""
        process.close()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._ends, _end_in_words, process, kill)

    def _start(self) -> EnvironmentProcess:
        """Start a process; return it when it is ready.

        Raises:
            RuntimeError: it can't be built there, or the nursery can't start.
            OSError: the system has no room for a process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            nursery, number = self._fork(theirs)
        process = EnvironmentProcess(number, nursery, ours, most_bytes=self._most_bytes)
        ours.settimeout(START_LIMIT_S)
        try:
            body = read_frame(ours)
            word, *values = ("",) if body is None else load_plain(body)
            why = "" if word == READY else str(error_of(*values)) if values else "it ended"
        except TimeoutError:
            why = f"it was not ready after {START_LIMIT_S:.0f} s"
        if not why:
            ours.setblocking(False)
            return process
        process.close()
        _end_in_words(process, True)
        raise RuntimeError(f"{self._name} can't be built in a process of its own: {why}")

    def _fork(self, connection: socket.socket) -> tuple[Nursery, int]:
        """Make a process; start the nursery anew if it is gone."""
        with self._renewing:
            try:
                return self._nursery, self._nursery.start(connection)
            except ProcessDiedError:
                self._nursery = Nursery(self._pickled)
                return self._nursery, self._nursery.start(connection)


def _end_in_words(process: EnvironmentProcess, kill: bool) -> str:
    """End a process, in a thread that may wait."""
    try:
        return end_in_words(process.nursery.end(process.number, kill=kill))
    except ProcessDiedError:
        return "its process ended with the one that made it"


def _pickle(environment: Environment) -> bytes:
    try:
        return pickle.dumps(environment)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{type(environment).__name__} can't be sent to another process ({error}): make it a "
            "dataclass of plain values in an importable module, or set "
            "environment.isolation=thread"
        ) from error
