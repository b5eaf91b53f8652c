"""Hold one process of an environment from the rollout worker: its messages and its end.

Runs in the event loop of the rollout worker. Neither starts nor ends processes: the nursery does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any

from workers.reward.child import HEADER
from workers.rollout.isolation.frames import FrameFaultError, load_plain, pack
from workers.rollout.isolation.nursery import Nursery

LAST_WORDS_S = 0.5  # for what a process wrote before its end, where another one has its socket


class ProcessGoneError(Exception):
    """Process that ended, or that closed its connection."""


class EnvironmentProcess:
    """Process that plays one rollout at a time.

    Args:
        number: id of the process.
        nursery: that made it.
        connection: to it.
        most_bytes: longest message that is read.

    Attributes:
        closed: True once nothing more is read.
    """

    def __init__(
        self, number: int, nursery: Nursery, connection: socket.socket, *, most_bytes: int
    ) -> None:
        self.number, self.nursery, self.most_bytes = number, nursery, most_bytes
        self._connection = connection
        self._ended = os.pidfd_open(number)  # nobody has waited for it: the id is its own
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.closed = False

    @property
    def lives(self) -> bool:
        """True while nothing has shown its end."""
        return self._streams is None or not self._streams[0].at_eof()

    async def open(self) -> None:
        """Begin to read in the running event loop, at the first call."""
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(sock=self._connection)
            # A process that it forked may hold the connection open behind its end.
            asyncio.get_running_loop().add_reader(self._ended, self._see_end)

    def _see_end(self) -> None:
        assert self._streams is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._ended)
        loop.call_later(LAST_WORDS_S, self._streams[0].feed_eof)

    def write(self, message: tuple[Any, ...]) -> None:
        """Send a message; wait for nothing, as a process that hangs reads none."""
        assert self._streams is not None
        self._streams[1].write(pack(message))

    async def send(self, message: tuple[Any, ...]) -> None:
        """Send a message; wait while the process has not read those before it.

        Raises:
            ProcessGoneError: the process has closed its connection.
        """
        assert self._streams is not None
        self.write(message)
        try:
            await self._streams[1].drain()
        except OSError as error:
            raise ProcessGoneError from error

    async def receive(self) -> tuple[Any, ...]:
        """Wait for the next message.

        Raises:
            ProcessGoneError: none follows.
            FrameFaultError: it is too long, or none.
        """
        assert self._streams is not None
        reader, _ = self._streams
        try:
            (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
            if length > self.most_bytes:
                raise FrameFaultError(
                    f"sent a message of {length} bytes, more than {self.most_bytes}"
                )
            body = await reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise ProcessGoneError from error
        return load_plain(body)

    def close(self) -> None:
        """Close the connection, at which a process that listens ends."""
        self.closed = True
        if self._streams is None:
            self._connection.close()
        else:
            asyncio.get_running_loop().remove_reader(self._ended)
            self._streams[1].close()
        os.close(self._ended)


def end_in_words(code: int) -> str:
    """Return the end of a process as a reason.

    Args:
        code: exit code, or minus the number of the signal that ended it.
    """
    if code >= 0:
        return f"its process ended with exit code {code}"
    names = {each.value: each.name for each in signal.Signals}
    return f"its process was ended by {names.get(-code, f'signal {-code}')}"
