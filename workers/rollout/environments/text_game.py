"""Play a text game with `reset` and `step`, as Gymnasium names them: observations and actions.

    observation, info = game.reset(seed=seed)
    observation, reward, terminated, truncated, info = game.step(action)

Every rollout has a game of its own, and as all that may block it plays in a thread (`threaded.py`).
Needs no Gymnasium: any object with these two methods is a game.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from workers.data.images.prompt_images import is_image
from workers.rollout.environments.contract import Outcome, Session, Task
from workers.rollout.environments.function import resolve


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
        game = resolve(self.path)(**self.arguments)
        seed = task.columns.get("seed")
        seed = zlib.crc32(task.uid.encode()) if seed is None else int(seed)
        rewards: list[float] = []
        ended = False
        try:
            observation, _ = game.reset(seed=seed)
            message = _message(observation)
            await session.observe([message])
            while not ended and session.may_draw:
                turn = await session.draw(state=_state(message))
                stepped = game.step(turn.text)
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
                game.close()
        return Outcome(reward=sum(rewards), turn_rewards=rewards, parts={"ended": float(ended)})


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
