"""Hold the ids of one rollout while an environment plays it: its rows, its turns and its budgets.

`Rollout` is what all rows of one rollout share: seeds, budgets, and the engine behind `sample`.
`RowSession` is one row, the `Session` that an environment sees. Ids are only ever appended, so what
was sampled stays as it was. Runs in the rollout worker. Scores nothing, and knows no environment.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from workers.data.images.message_images import without_images
from workers.data.images.prompt_images import NO_IMAGES, LoadedImage, PromptImages
from workers.data.requests import Sample, Sampling
from workers.data.turns import TurnSpan
from workers.rollout.environments.contract import Message, Prompt, SpentError, Task, Turn
from workers.rollout.environments.guarded_play import EnvironmentClock
from workers.rollout.limits import RolloutLimits
from workers.rollout.opening import Opening
from workers.rollout.rollout_images import RolloutImages
from workers.rollout.row import Row, RowColumns
from workers.rollout.turn_texts import TurnTexts, text_of

#: (ids so far, number of the turn, settings of this turn, images) -> the policy's continuation
Sampler = Callable[[list[int], int, Sampling, PromptImages], Awaitable[Sample]]


SPARE_ROWS = 64  # that a rollout may begin beside one for each turn


class AbortedError(RuntimeError):
    """Turn that was ended before its end; its tokens are recorded."""


class Rollout:
    """One rollout: its rows and what they share.

    Args:
        task: the row of the prompt file.
        tokens: ids of its prompt.
        sampling: of the run; `max_tokens` bounds all tokens behind a row's prompt.
        limits: budgets beside that.
        texts: turns messages into ids.
        sample: asks the engine.
        clock: of the environment's own time.
        images: of the prompt.
    """

    def __init__(
        self,
        task: Task,
        tokens: Sequence[int],
        *,
        sampling: Sampling,
        limits: RolloutLimits,
        texts: TurnTexts,
        sample: Sampler,
        clock: EnvironmentClock,
        images: PromptImages = NO_IMAGES,
    ) -> None:
        self.sampling, self.limits = sampling, limits
        self.texts, self.clock, self._sample = texts, clock, sample
        self.turns: list[Turn] = []
        self.spent = False  # no turn came since an observation found no room, or a draw no budget
        self._num_begun, self._num_bytes = 0, 0
        self.images = RolloutImages(texts.encoder, images, max_bytes=limits.max_image_bytes)
        opening = Opening(prompt=task.prompt, max_tokens=len(tokens) + sampling.max_tokens)
        self.first = RowSession(self, tokens, branch=0, opening=opening, images=images)
        self._sessions = [self.first]

    @property
    def finish_reason(self) -> str:
        """Reason of the last turn; "length" where a budget was spent."""
        if self.spent or not self.turns:
            return "length" if self.spent else "abort"
        return max(self.turns, key=lambda turn: turn.number).finish_reason

    @property
    def text(self) -> str:
        """Texts of all turns, a line each."""
        return "\n".join(turn.text for turn in sorted(self.turns, key=lambda turn: turn.number))

    def rows(self, turn_rewards: Sequence[float] = ()) -> list[Row]:
        """Return the rows in which a turn was sampled; the first row where none was.

        Args:
            turn_rewards: of the turns in the order of their numbers.
        """
        drawn = [session for session in self._sessions if session.has_turns]
        return [session.row(turn_rewards) for session in drawn or self._sessions[:1]]

    def count_bytes(self, messages: Sequence[Message]) -> None:
        """Count the texts of an observation, or raise ValueError beyond the budget."""
        self._num_bytes += sum(len(text_of(message).encode()) for message in messages)
        if self._num_bytes > (most := self.limits.max_observation_bytes):
            key = f"environment.max_observation_bytes={most}"
            raise ValueError(f"observations of {self._num_bytes} bytes, beyond {key}")

    @property
    def turns_left(self) -> int:
        """Turns that may still be sampled."""
        return self.limits.max_turns - self._num_begun

    async def sample(
        self, tokens: list[int], sampling: Sampling, images: PromptImages
    ) -> tuple[Sample, int]:
        """Sample a turn behind `tokens`; return the sample and the turn's number."""
        self._num_begun += 1
        number = self._num_begun
        with self.clock.drawing():
            return await self._sample(tokens, number, sampling, images), number

    def add_row(self, tokens: Sequence[int], opening: Opening, images: PromptImages) -> RowSession:
        """Begin another row that starts with `tokens` and the images among them.

        Raises:
            ValueError: the rollout has many more rows than it can have turns.
        """
        branch = len(self._sessions)
        if branch >= (most := self.limits.max_turns + SPARE_ROWS):
            raise ValueError(
                f"a rollout of environment.max_turns={self.limits.max_turns} has at most {most} "
                "rows; draw in a row before the next branch"
            )
        session = RowSession(self, tokens, branch=branch, opening=opening, images=images)
        self._sessions.append(session)
        return session


class RowSession:
    """Session of one row.

    Args:
        rollout: of which it is a row.
        tokens: ids that the row starts with, none of which it trains.
        branch: number of the row.
        opening: origin of these ids.
        images: at their places in these ids.
    """

    def __init__(
        self,
        rollout: Rollout,
        tokens: Sequence[int],
        *,
        branch: int,
        opening: Opening,
        images: PromptImages,
    ) -> None:
        self._rollout, self._branch, self._opening = rollout, branch, opening
        self._columns = RowColumns(tokens, images)
        self._spans: list[TurnSpan] = []
        self._history = opening.messages()
        self._new: list[Message] = []  # observed since the last turn
        self._new_images: list[LoadedImage] = []  # of these messages
        self._sampled: Sequence[int] = ()  # ids of the last turn
        self._turn_end = 0  # ids when the last turn ended
        self._drawing = False
        self._full = False  # an observation found no room
        if opening.shared and opening.shared[-1].end == len(tokens):
            self._sampled, self._turn_end = tokens[opening.shared[-1].start :], len(tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """See `contract.Session`."""
        return self._columns.tokens

    @property
    def has_turns(self) -> bool:
        """True where a turn was sampled in this row."""
        return bool(self._spans)

    @property
    def may_draw(self) -> bool:
        """See `contract.Session`."""
        return not self._full and self._rollout.turns_left > 0 and self._room > 0

    @property
    def _room(self) -> int:
        """Tokens that the row may still grow by."""
        return self._opening.max_tokens - len(self.tokens)

    async def draw(
        self, *, max_tokens: int | None = None, stop: Sequence[str] = (), state: str = ""
    ) -> Turn:
        """See `contract.Session`."""
        await self._rollout.clock.check()
        if self._drawing:
            raise ValueError("a row draws one turn at a time; branch it to draw several")
        if not self.may_draw:
            self._rollout.spent = True
            raise SpentError("no turn or no token is left of the rollout's budgets")
        limits, sampling = self._rollout.limits, self._rollout.sampling
        bounds = [n for n in (self._room, limits.max_turn_tokens, max_tokens) if n is not None]
        sampling = replace(sampling, max_tokens=min(bounds), stop=(*sampling.stop, *stop))
        before = self._checksum(state)
        self._drawing = True
        try:
            images = self._columns.images
            sample, number = await self._rollout.sample(list(self.tokens), sampling, images)
        finally:
            self._drawing = False
        return self._take(sample, number, before)

    def _take(self, sample: Sample, number: int, state: int) -> Turn:
        start = len(self.tokens)
        self._columns.append_sampled(sample)
        reason = sample.finish_reason
        turn = Turn(
            number=number, text=sample.text, tokens=tuple(sample.tokens), finish_reason=reason
        )
        span = TurnSpan(
            number=number, start=start, end=len(self.tokens), finish_reason=reason, state=state
        )
        self._spans.append(span)
        self._rollout.turns.append(turn)
        self._rollout.spent = False
        if reason == "abort":
            self._rollout.clock.fail(AbortedError("the turn was ended before its end"))
        self._history += [*self._new, {"role": "assistant", "content": sample.text}]
        self._new, self._new_images = [], []
        self._sampled, self._turn_end = turn.tokens, len(self.tokens)
        return turn

    async def observe(self, messages: Sequence[Message]) -> None:
        """See `contract.Session`."""
        rollout, opening = self._rollout, self._opening
        rollout.count_bytes(messages)
        shown = self._columns.images
        plain, loaded = await rollout.images.of_messages(messages, held=len(shown.spans))
        if not self._spans and not self._branch:
            self._open(opening.followed_by(plain), opening.tools, [*shown.loaded, *loaded])
            return
        if not self._spans and not self._sampled:
            raise ValueError("a branch that begins before a turn observes ids until it is drawn")
        new, images = [*self._new, *plain], [*self._new_images, *loaded]
        ids, places = rollout.texts.extension(
            opening.prompt,
            self._history[:-1],
            new,
            sampled=self._sampled,
            tools=opening.tools,
            loaded=images,
        )
        self._columns.cut(self._turn_end)
        self._new, self._new_images = new, images
        self._observe(ids, places)

    def observe_tokens(self, ids: Sequence[int]) -> None:
        """See `contract.Session`."""
        self._observe(ids)
        # Ids end what can be rendered anew: messages before them stay as they are.
        self._turn_end, self._sampled = len(self.tokens), ()
        self._new, self._new_images = [], []

    def _observe(self, ids: Sequence[int], images: PromptImages = NO_IMAGES) -> None:
        """Append ids and their images if a token of the row's budget is left behind them."""
        if len(ids) >= self._room:
            self._full = self._rollout.spent = True
            return
        self._columns.append(ids, images)

    async def reopen(
        self, messages: Prompt, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """See `contract.Session`."""
        prompt, loaded = await self._rollout.images.of_prompt(messages)
        self._open(prompt, tools, loaded)

    def _open(
        self,
        prompt: Prompt,
        tools: Sequence[Mapping[str, Any]] | None,
        loaded: Sequence[LoadedImage],
    ) -> None:
        """Replace the prompt and its images; each place for an image has one of `loaded`."""
        if self._spans or self._opening.shared:
            raise ValueError("the prompt can't change once a turn was drawn; branch the row")
        if self._turn_end:
            raise ValueError("ids were observed before the first turn; send messages before ids")
        tokens, images = self._rollout.texts.opening(prompt, tools, loaded)
        longest = len(tokens) + self._rollout.sampling.max_tokens
        self._opening = Opening(prompt=prompt, tools=tools, max_tokens=longest)
        self._history = self._opening.messages()
        self._columns = RowColumns(tokens, images)

    def branch(self, keep: int, *, messages: Sequence[Message] = ()) -> RowSession:
        """See `contract.Session`."""
        if not 0 <= keep <= len(self.tokens):
            raise ValueError(f"a row of {len(self.tokens)} ids can't share the first {keep}")
        shown = self._columns.images
        images = shown.before(keep)
        if any(span.offset < keep for span in shown.spans[len(images.spans) :]):
            raise ValueError(f"the first {keep} ids end within an image; share it whole, or not")
        turns = [span for span in (*self._opening.shared, *self._spans) if span.end <= keep]
        history = tuple(without_images(messages))
        opening = replace(self._opening, history=history, shared=tuple(turns))
        return self._rollout.add_row(self.tokens[:keep], opening, images)

    def row(self, turn_rewards: Sequence[float]) -> Row:
        """Return the row's columns; what follows its last turn was never answered and is cut off.

        Args:
            turn_rewards: of the turns in the order of their numbers.
        """
        end = self._spans[-1].end if self._spans else len(self.tokens)
        return self._columns.row(self._branch, end, self._spans, turn_rewards)

    def _checksum(self, state: str) -> int:
        """Return the checksum of a state, or of the ids since the last turn."""
        if state:
            return zlib.crc32(state.encode())
        start = self._spans[-1].end if self._spans else 0
        seen = "".join(span.digest for span in self._columns.images.spans if span.offset >= start)
        observed = np.asarray(self.tokens[start:], dtype=np.int32)
        return zlib.crc32(observed.tobytes(), zlib.crc32(seen.encode()))
