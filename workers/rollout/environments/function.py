"""Play with a user's own function or class, given by dotted path or by file.

    async def play(task, session): ...               called for every rollout
    class Play: async def play(self, task, session)  built once in each rollout worker

The driver resolves the path when it builds the environment, so a wrong path fails before anything
starts; the rollout worker resolves the path again. The contract is that of `contract.py`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.reward.scorers.function import load_file
from workers.rollout.environments.contract import Outcome, Session, Task

_BUILDING = threading.RLock()  # rollouts play in threads, and begin together


@dataclass(frozen=True, kw_only=True)
class Function:
    """Environment that calls a function with task and session.

    Attributes:
        path: "package.module.function", or "/folder/file.py:function"; a class is constructed.
        arguments: further keyword arguments of every call, of a class those of its constructor.

    Raises:
        ValueError: no coroutine function is there.
    """

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", dict(self.arguments))
        if ".py:" in self.path:  # the rollout worker need not share this process's directory
            object.__setattr__(self, "path", os.path.abspath(os.path.expanduser(self.path)))
        found = resolve(self.path)
        played = getattr(found, "play", None) if inspect.isclass(found) else found
        if not inspect.iscoroutinefunction(played):
            raise ValueError(
                f"environment.player.path={self.path} names no `async def play(task, session)` and "
                f"no class with one, but {found!r}"
            )

    @property
    def never_blocks(self) -> bool:
        """The attribute of this name of the user's function or class."""
        return bool(getattr(resolve(self.path), "never_blocks", False))

    async def play(self, task: Task, session: Session) -> Outcome:
        """Play one rollout with the user's function; what the function returns is unchecked."""
        with _BUILDING:
            play = self._play
        return await play(task, session)

    @functools.cached_property
    def _play(self) -> Callable[[Task, Session], Awaitable[Outcome]]:
        found = resolve(self.path)
        if inspect.isclass(found):
            player: Any = found
            played: Callable[[Task, Session], Awaitable[Outcome]] = player(**self.arguments).play
            return played
        return functools.partial(found, **self.arguments)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the resolved function behind: another process resolves the path itself."""
        return {"path": self.path, "arguments": self.arguments}


def resolve(path: str) -> Any:
    """Import the function or class that a path names; a file is loaded once.

    Raises:
        ValueError: it can't be imported; the message names the missing part.
    """
    with _BUILDING:
        return _resolve(path)


@functools.cache
def _resolve(path: str) -> Any:
    file, _, name = path.rpartition(":")
    try:
        if file.endswith(".py"):
            return getattr(load_file(file), name)
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)
    # Whatever the user's module raises while it is imported, its path is what must be said.
    except Exception as error:
        raise ValueError(
            f"environment.player.path={path} cannot be imported ({type(error).__name__}: {error}): "
            'give "package.module.function" of an installed module, or "/folder/file.py:function"'
        ) from error
