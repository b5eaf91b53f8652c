"""What goes between two processes: plain values, and errors that keep kind, name and text."""

import asyncio
from collections import OrderedDict, deque
from decimal import Decimal
from enum import IntEnum, StrEnum

import numpy as np
import pytest

from workers.reward.child import HEADER
from workers.rollout.environments.contract import SpentError
from workers.rollout.isolation.frames import (
    FrameFaultError,
    FrameTooLongError,
    error_of,
    load_plain,
    pack,
    parts_of,
    plain,
)


class Role(StrEnum):
    USER = "user"


class Level(IntEnum):
    HIGH = 3


def test_values_of_many_classes_become_plain_ones():
    given = {
        "role": Role.USER,
        "level": Level.HIGH,
        "share": np.float32(0.5),
        "count": np.int64(7),
        "parts": (OrderedDict(a=True), deque([None, b"x", bytearray(b"y")])),
    }
    found = plain(given)
    assert found == {
        "role": "user",
        "level": 3,
        "share": 0.5,
        "count": 7,
        "parts": ({"a": True}, [None, b"x", b"y"]),
    }
    assert load_plain(pack((*found,))[HEADER.size :]) == tuple(found)
    assert {type(found[name]) for name in ("role", "level", "share", "count")} == {str, int, float}


@pytest.mark.parametrize("value", [object(), {"a": {1, 2}}, [Decimal("0.5")]])
def test_a_value_of_another_class_is_refused(value):
    with pytest.raises(TypeError, match="can't be sent to the rollout worker; send texts"):
        plain(value)


def test_a_body_with_a_class_is_no_message():
    with pytest.raises(FrameFaultError, match=r"^sent what is no message \(collections.deque\)$"):
        load_plain(pack(("call", deque()))[HEADER.size :])
    with pytest.raises(FrameFaultError, match="^sent what is no message"):
        load_plain(b"\x80\x05nonsense")


def test_a_message_that_the_worker_does_not_take_is_not_sent():
    assert len(pack(("a",), most_bytes=100)) < 100
    with pytest.raises(FrameTooLongError, match="which takes 100: the bytes of environment.max"):
        pack(("a" * 100,), most_bytes=100)


class MineError(KeyError):
    """A class that the other process would not know."""


def noted(error, note):
    error.add_note(note)
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("bad"), ValueError),
        (KeyError("k"), KeyError),
        (SpentError("no turn"), SpentError),
        (asyncio.CancelledError(), asyncio.CancelledError),
        (noted(TimeoutError("late"), "in room 3"), TimeoutError),
        (OSError(2, "no file", "a.txt"), OSError),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad byte"), ValueError),
        (ExceptionGroup("two", [ValueError("a")]), Exception),
        (MineError("k"), KeyError),
        (RuntimeError("x" * 5000), RuntimeError),
    ],
)
def test_an_error_keeps_its_kind_its_name_its_text_and_its_notes(error, kind):
    parts = load_plain(pack(("raised", *parts_of(error)))[HEADER.size :])[1:]
    found = error_of(*parts)
    assert isinstance(found, kind)
    assert type(found).__name__ == type(error).__name__
    assert str(found) == str(error)[:2000]
    assert getattr(found, "__notes__", []) == getattr(error, "__notes__", [])
