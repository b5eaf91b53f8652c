"""Play rollouts in the process of an environment, one after another.

The main thread plays, each rollout in an event loop of its own; a second thread reads what the
rollout worker sends, and ends the process where the worker is gone. Runs in the process that the
nursery made (`nursery.py`). Counts no time: a rollout that does not end is ended from outside,
with its process.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import queue
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from workers.rollout.environments.contract import Environment, Task
from workers.rollout.environments.outcome_check import OutcomeFaultError, checked
from workers.rollout.isolation.frames import (
    FrameTooLongError,
    pack,
    parts_of,
    plain,
    read_frame,
)
from workers.rollout.isolation.link import Link, RemoteSession


def play_all(connection: socket.socket, pickled: bytes) -> None:
    """Build the environment, and play with it until the worker closes the connection."""
    try:
        environment = pickle.loads(pickled)
    except BaseException as error:
        connection.sendall(pack(("raised", *parts_of(error))))
        return
    connection.sendall(pack(("ready",)))
    rollouts: queue.SimpleQueue[_RemoteRollout] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, rollouts), daemon=True).start()
    while True:
        rollouts.get().run(environment)
        connection.sendall(pack(("ready",)))


def _read(connection: socket.socket, rollouts: queue.SimpleQueue[_RemoteRollout]) -> None:
    """Hand out what the worker sends; end the process where the worker is gone."""
    rollout: _RemoteRollout | None = None
    with suppress(OSError):
        while (body := read_frame(connection)) is not None:
            word, *values = pickle.loads(body)
            if word == "play":
                task, most_bytes = values
                link = Link(connection.sendall, most_bytes=most_bytes)
                rollout = _RemoteRollout(task, link)
                rollouts.put(rollout)
            elif rollout is not None:
                rollout.take(word, values)
    os._exit(0)


class _RemoteRollout:
    """Rollout that is played here.

    Args:
        task: the row to play.
        link: to the session, which the worker holds.
    """

    def __init__(self, task: Task, link: Link) -> None:
        self._task, self._link = task, link
        self._playing: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        self._cancelled = False

    def take(self, word: str, values: Sequence[Any]) -> None:
        """Take a message of the worker."""
        if word == "answer":
            self._link.settle(*values)
        elif word == "refuse":
            self._link.refuse(*values)
        else:
            self._cancel()

    def _cancel(self) -> None:
        self._cancelled = True
        if self._playing is not None:
            loop, playing = self._playing
            with suppress(RuntimeError):  # that loop was closed meanwhile
                loop.call_soon_threadsafe(playing.cancel)

    def run(self, environment: Environment) -> None:
        """Play the rollout to its end; the end is sent before what it started has ended."""
        try:
            asyncio.run(self._play(environment))
        except BaseException as error:  # raised in the event loop's own steps
            self._link.end(("raised", *parts_of(error)))

    async def _play(self, environment: Environment) -> None:
        playing = asyncio.current_task()
        assert playing is not None
        self._playing = asyncio.get_running_loop(), playing
        try:
            if self._cancelled:  # before there was a task to cancel
                raise asyncio.CancelledError
            outcome = await environment.play(self._task, RemoteSession(self._link))
        except BaseException as error:
            self._link.end(("raised", *parts_of(error)))
            return
        try:
            self._link.end(("outcome", _columns(outcome)))
        except (OutcomeFaultError, FrameTooLongError) as error:
            self._link.end(("fault", str(error)))
        except Exception as error:  # names and values of an outcome are the user's code, too
            kind, text = type(error).__name__, parts_of(error)[2]
            self._link.end(("fault", f"{kind}: {text}"))


def _columns(outcome: object) -> dict[str, Any]:
    """Return the checked columns of an outcome, without classes of the user."""
    found = checked(outcome)
    columns: dict[str, Any] = plain(
        {
            "reward": found.reward,
            "parts": found.parts,
            "notes": found.notes,
            "turn_rewards": found.turn_rewards,
            "response": found.response,
        }
    )
    return columns
