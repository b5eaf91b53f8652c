"""Compare a history that an agent sends with what a row of its rollout holds.

An agent sends its whole history with every call. A row is kept as pieces, in turn what the agent
gave and what the policy said, with the ids of each turn. `find_place` tells from which turn of
which row a call goes on. Pure functions: no ids are made or sampled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

History = str | list[dict[str, Any]]  # of text completions, or chat messages
END_OF_THOUGHTS = "</think>"


@dataclass(frozen=True, kw_only=True)
class Given:
    """Text or messages that the agent wrote.

    Example: Given(content=[{"role": "user", "content": "2+3="}])
    """

    content: History


@dataclass(frozen=True, kw_only=True)
class Said:
    """Turn of the policy: ids [start, end) of its row.

    Example: Said(forms=["5"], start=2, end=4)

    Attributes:
        forms: texts as which an agent may send the turn back, the longest first; or the message.
            Empty while the turn is drawn.
        start: number of ids before the turn.
        end: number of ids behind it; `start` while the turn is drawn.
    """

    forms: Sequence[str] | dict[str, Any]
    start: int
    end: int


Piece = Given | Said


@dataclass(kw_only=True)
class Thread:
    """One row of the rollout, as an agent sees it."""

    row: Any  # a Session
    tools: list[dict[str, Any]] | None
    pieces: list[Piece] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Place in a thread from which a call goes on.

    Example, behind the first turn of a row with two turns, which opens a branch:
        Place(thread=thread, num_pieces=2, keep=4, used=2)

    Attributes:
        num_pieces: of the thread, before the place.
        keep: ids before the place.
        used: part of the call's history before the place: messages, or characters.
    """

    thread: Thread
    num_pieces: int
    keep: int
    used: int

    @property
    def is_end(self) -> bool:
        """True if the row ends here, so that it grows; a call from elsewhere opens a branch."""
        return self.num_pieces == len(self.thread.pieces)


def find_place(
    threads: Sequence[Thread], given: History, tools: list[dict[str, Any]] | None
) -> Place | None:
    """Return the place that shares most ids with a history; None if it shares no turn's place."""
    best: Place | None = None
    for thread in threads:
        if thread.tools != tools:
            continue
        for place in _places(thread, given):
            better = best is None or (place.keep, place.is_end) > (best.keep, best.is_end)
            best = place if better else best
    return best


def _places(thread: Thread, given: History) -> list[Place]:
    """Return the places of a thread from which a history can go on."""
    used = _walk(thread.pieces, given)
    found = []
    for number, piece in enumerate(thread.pieces):
        if not isinstance(piece, Said):
            continue
        if number - 1 < len(used) and used[number - 1] == len(given):  # the same turn once more
            found.append(Place(thread=thread, num_pieces=number, keep=piece.start, used=len(given)))
        # A chat goes on with a new message; a text may go on from its very end.
        if number < len(used) and (used[number] < len(given) or isinstance(given, str)):
            found.append(
                Place(thread=thread, num_pieces=number + 1, keep=piece.end, used=used[number])
            )
    return found


def _walk(pieces: Sequence[Piece], given: History) -> list[int]:
    """Return the length of the history behind each of the first pieces, while they are in it."""
    used: list[int] = []
    at = 0
    for piece in pieces:
        size = _matched(piece, given, at)
        if size is None:
            break
        at += size
        used.append(at)
    return used


def _matched(piece: Piece, given: History, at: int) -> int | None:
    """Return how much of the history from `at` on is this piece; None if it is another one."""
    if isinstance(given, str):
        forms = [piece.content] if isinstance(piece, Given) else piece.forms
        for form in forms:
            if isinstance(form, str) and given.startswith(form, at):
                return len(form)
        return None
    if isinstance(piece, Said):
        said = piece.forms
        fits = isinstance(said, dict) and at < len(given) and is_same_turn(said, given[at])
        return 1 if fits else None
    messages = piece.content
    return len(messages) if given[at : at + len(messages)] == messages else None


def is_same_turn(said: dict[str, Any], sent: dict[str, Any]) -> bool:
    """Return True if a message is a turn as agents send it back.

    White space at both ends may be lost, and so may the thoughts before an answer: the row keeps
    the ids that were sampled.
    """
    if sent["role"] != "assistant":
        return False
    whole = str(said.get("content") or "")
    answer = whole.rpartition(END_OF_THOUGHTS)[2]
    if str(sent.get("content") or "").strip() not in (whole.strip(), answer.strip()):
        return False
    return _calls(said) == _calls(sent)


def _calls(message: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [
        (call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    ]
