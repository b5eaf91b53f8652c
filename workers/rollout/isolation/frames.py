"""Frames between a rollout worker and the process of an environment, over one socket.

A frame is a header, the length of a body, and the body, a pickled tuple that begins with a word:

    worker  -> process  ("play", task, most_bytes), ("cancel",)
                        ("answer", call, value), ("refuse", call, kinds, args, text, notes)
    process -> worker   ("ready",), ("call", call, row, method, arguments), ("drop", call)
                        ("outcome", columns), ("fault", reason)
                        ("raised", kinds, args, text, notes)

The process of an environment is not trusted: its frames hold plain values only (`load_plain`), so
that no code of the user runs in the worker. Runs in both processes. Decides nothing.
"""

from __future__ import annotations

import io
import numbers
import pickle
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from workers.reward.child import HEADER

TEXT_CHARS = 2000  # of an error that goes from one process to the other
PLAIN = (type(None), bool, int, float, str, bytes)
#: Modules whose errors are made again; one of another module keeps its name and a base of these.
KNOWN = ("builtins", "asyncio.exceptions")
OWN = "workers."

ErrorParts = tuple[tuple[str, ...], tuple[Any, ...], str, tuple[str, ...]]


class FrameFaultError(ValueError):
    """Frame that is no message of this protocol; the message is the reason."""


class FrameTooLongError(ValueError):
    """Message that is longer than the other side takes."""


def pack(message: tuple[Any, ...], *, most_bytes: int | None = None) -> bytes:
    """Return the frame of a message.

    Raises:
        FrameTooLongError: its body has more than `most_bytes`.
    """
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    if most_bytes is not None and len(body) > most_bytes:
        raise FrameTooLongError(
            f"{len(body)} bytes for the rollout worker, which takes {most_bytes}: the bytes of "
            "environment.max_observation_bytes and max_image_bytes, and 4 MiB"
        )
    return HEADER.pack(len(body)) + body


def read_frame(connection: socket.socket) -> bytes | None:
    """Wait for the body of the next frame; return None where the other side is gone."""
    header = _read(connection, HEADER.size)
    if header is None:
        return None
    (length,) = HEADER.unpack(header)
    return _read(connection, length)


def _read(connection: socket.socket, length: int) -> bytes | None:
    found = bytearray()
    while len(found) < length:
        data = connection.recv(min(length - len(found), 1 << 20))
        if not data:
            return None
        found += data
    return bytes(found)


def load_plain(body: bytes) -> tuple[Any, ...]:
    """Return the message of a body that may hold plain values only.

    Raises:
        FrameFaultError: it holds something else, or is no message.
    """
    try:
        message = _PlainUnpickler(io.BytesIO(body)).load()
    except Exception as error:
        raise FrameFaultError(f"sent what is no message ({error})") from error
    if not isinstance(message, tuple) or not message or not isinstance(message[0], str):
        raise FrameFaultError("sent what is no message")
    return message


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse every class and function, of whatever module."""
        raise pickle.UnpicklingError(f"{module}.{name}")


def plain(value: Any) -> Any:
    """Return a value that another process can hold without the sender's classes.

    Mappings become dicts, numbers of any library Python's, and pictures of PIL files in PNG.

    Raises:
        TypeError: it holds anything else.
    """
    if type(value) in PLAIN:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    # Who has a picture has loaded PIL; nobody else pays for it.
    pictures = sys.modules.get("PIL.Image")
    if pictures is not None and isinstance(value, pictures.Image):
        from workers.data.images.decoding import file_of

        return file_of(value)
    raise TypeError(
        f"a {type(value).__name__} can't be sent to the rollout worker; send texts, numbers, "
        "bytes, pictures, lists and mappings"
    )


def parts_of(error: BaseException) -> ErrorParts:
    """Return kinds, arguments, text and notes of an error, as plain values."""
    kinds = tuple(
        f"{kind.__module__}:{kind.__qualname__}"
        for kind in type(error).__mro__
        if issubclass(kind, BaseException)
    )
    try:
        text = str(error)
    except Exception:  # a text that the user's own class makes
        text = "an error without a text"
    given = error.args if all(type(each) in PLAIN for each in error.args) else ()
    if len(text) > TEXT_CHARS:
        text, given = text[:TEXT_CHARS], ()
    notes = tuple(str(note)[:TEXT_CHARS] for note in getattr(error, "__notes__", ())[:4])
    return kinds, given, text, notes


def error_of(
    kinds: Sequence[str], given: tuple[Any, ...], text: str, notes: Sequence[str]
) -> BaseException:
    """Return an error of the same kind, name and text.

    A class that this process has not loaded becomes one of the same name below its nearest base.
    """
    name = kinds[0].rpartition(".")[2].rpartition(":")[2]
    for kind in kinds:
        found = _loaded(kind)
        if found is None:
            continue
        made = found if kind == kinds[0] else type(name, (found,), {})
        for args in (given, (text,)):
            error = _built(made, args, text)
            if error is not None:
                for note in notes:
                    error.add_note(note)
                return error
    raise FrameFaultError(f"sent an error of an unknown kind: {kinds[0]}")


def _loaded(kind: str) -> type[BaseException] | None:
    """Return the class of an error if it is one of those that are made again, and loaded here."""
    module, _, name = kind.partition(":")
    if module not in KNOWN and not module.startswith(OWN):
        return None
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _built(made: type[BaseException], args: tuple[Any, ...], text: str) -> BaseException | None:
    """Return an error of a class, or None where its text would be another."""
    try:
        error = made.__new__(made, *args)
        error.args = args
        return error if str(error) == text else None
    except Exception:  # of classes that need other arguments
        return None
