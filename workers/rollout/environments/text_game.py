"""Play a text game with `reset` and `step`, as Gymnasium names them: observations and actions.

    observation, info = game.reset(seed=seed)
    observation, reward, terminated, truncated, info = game.step(action)

Every rollout has a game and a thread of its own, so a game that computes, waits or hangs stops no
other rollout. Needs no Gymnasium: any object with these two methods is a game.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from PIL import Image

from workers.data.images.prompt_images import is_image
from workers.rollout.environments.contract import Outcome, Session, Task
from workers.rollout.environments.function import resolve

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class TextGame:
    """Environment that sends the text of every turn to a game.

    An observation is a text, a picture of PIL, or a list of content parts with an image; all else
    is shown as `str` writes it. The first observation joins the prompt. Each step's reward is the
    reward of its turn, and their sum that of the rollout. The game's seed is the column `seed` of
    the row, or a checksum of the row's name, so siblings play the same game.

    Attributes:
        path: "package.module.make" or "/folder/file.py:Game": called for every rollout, returns a
            game.
        arguments: keyword arguments of that call.

    Raises:
        ValueError: nothing callable is at `path`.
    """

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", dict(self.arguments))
        if not callable(resolve(self.path)):
            raise ValueError(f"environment.player.path={self.path} is not callable")

    async def play(self, task: Task, session: Session) -> Outcome:
        """Play one game to its end, or to the end of the budgets.

        Raises:
            ValueError: `step` does not return five values.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="game")
        try:
            return await self._play(_Threaded(thread), task, session)
        finally:
            thread.shutdown(wait=False)

    async def _play(self, thread: _Threaded, task: Task, session: Session) -> Outcome:
        game = await thread(resolve(self.path), **self.arguments)
        seed = task.columns.get("seed")
        seed = zlib.crc32(task.uid.encode()) if seed is None else int(seed)
        rewards: list[float] = []
        ended = False
        try:
            observation, _ = await thread(game.reset, seed=seed)
            message = _message(observation)
            await session.observe([message])
            while not ended and session.may_draw:
                turn = await session.draw(state=_state(message))
                stepped = await thread(game.step, turn.text)
                if not isinstance(stepped, tuple) or len(stepped) != 5:
                    raise ValueError(
                        "`step` of a game returns (observation, reward, terminated, truncated, "
                        f"info), not {stepped!r:.80}"
                    )
                observation, reward, terminated, truncated, _ = stepped
                message = _message(observation)
                rewards.append(float(reward))
                ended = bool(terminated or truncated)
                if not ended and session.may_draw:
                    await session.observe([message])
        finally:
            if hasattr(game, "close"):
                thread.send(game.close)
        return Outcome(reward=sum(rewards), turn_rewards=rewards, parts={"ended": float(ended)})


class _Threaded:
    """Calls in one thread, one after the other."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread

    async def __call__(
        self,
        function: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Call a function in the thread and wait for its result."""
        future = self._thread.submit(function, *args, **kwargs)
        return await asyncio.wrap_future(future)

    def send(self, function: Callable[[], object]) -> None:
        """Call a function in the thread after all others, and wait for nothing."""
        self._thread.submit(function)


def _message(observation: object) -> dict[str, Any]:
    """Return an observation as the user's message: text, or content parts with an image."""
    if isinstance(observation, Image.Image):
        return {"role": "user", "content": [{"type": "image", "image": observation}]}
    if isinstance(observation, list) and any(is_image(part) for part in observation):
        return {"role": "user", "content": observation}
    return {"role": "user", "content": str(observation)}


def _state(message: dict[str, Any]) -> str:
    """Return the name of the state that was observed; none for images, which have checksums."""
    return message["content"] if isinstance(message["content"], str) else ""
