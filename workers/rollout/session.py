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

from workers.data.requests import Sample, Sampling
from workers.data.turns import TurnSpan
from workers.rollout.environments.contract import Message, Prompt, SpentError, Task, Turn
from workers.rollout.environments.guarded_play import EnvironmentClock
from workers.rollout.limits import RolloutLimits
from workers.rollout.opening import Opening
from workers.rollout.row import Row
from workers.rollout.turn_texts import TurnTexts, text_of

#: (ids so far, number of the turn, settings of this turn) -> the policy's continuation
Sampler = Callable[[list[int], int, Sampling], Awaitable[Sample]]


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
    ) -> None:
        self.sampling, self.limits = sampling, limits
        self.texts, self.clock, self._sample = texts, clock, sample
        self.turns: list[Turn] = []
        self.spent = False  # no turn came since an observation found no room, or a draw no budget
        self._num_begun, self._num_bytes = 0, 0
        opening = Opening(prompt=task.prompt, max_tokens=len(tokens) + sampling.max_tokens)
        self.first = RowSession(self, tokens, branch=0, opening=opening)
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

    async def sample(self, tokens: list[int], sampling: Sampling) -> tuple[Sample, int]:
        """Sample a turn behind `tokens`; return the sample and the turn's number."""
        self._num_begun += 1
        number = self._num_begun
        with self.clock.drawing():
            return await self._sample(tokens, number, sampling), number

    def add_row(self, tokens: Sequence[int], opening: Opening) -> RowSession:
        """Begin another row that starts with `tokens`."""
        session = RowSession(self, tokens, branch=len(self._sessions), opening=opening)
        self._sessions.append(session)
        return session


class RowSession:
    """Session of one row.

    Args:
        rollout: of which it is a row.
        tokens: ids that the row starts with, none of which it trains.
        branch: number of the row.
        opening: origin of these ids.
    """

    def __init__(
        self, rollout: Rollout, tokens: Sequence[int], *, branch: int, opening: Opening
    ) -> None:
        self._rollout, self._branch, self._opening = rollout, branch, opening
        self._tokens: list[int] = []
        self._mask: list[bool] = []
        self._logprobs: list[float] = []
        self._versions: list[int] = []
        self._spans: list[TurnSpan] = []
        self._history = opening.messages()
        self._new: list[Message] = []  # observed since the last turn
        self._sampled: Sequence[int] = ()  # ids of the last turn
        self._turn_end = 0  # ids when the last turn ended
        self._drawing = False
        self._full = False  # an observation found no room
        self._append(tokens)
        if opening.shared and opening.shared[-1].end == len(tokens):
            self._sampled, self._turn_end = tokens[opening.shared[-1].start :], len(tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """See `contract.Session`."""
        return self._tokens

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
        return self._opening.max_tokens - len(self._tokens)

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
            sample, number = await self._rollout.sample(list(self._tokens), sampling)
        finally:
            self._drawing = False
        return self._take(sample, number, before)

    def _take(self, sample: Sample, number: int, state: int) -> Turn:
        start = len(self._tokens)
        self._tokens += sample.tokens
        self._mask += [True] * len(sample.tokens)
        self._logprobs += sample.logprobs
        self._versions += sample.weight_versions
        reason = sample.finish_reason
        turn = Turn(
            number=number, text=sample.text, tokens=tuple(sample.tokens), finish_reason=reason
        )
        span = TurnSpan(
            number=number, start=start, end=len(self._tokens), finish_reason=reason, state=state
        )
        self._spans.append(span)
        self._rollout.turns.append(turn)
        self._rollout.spent = False
        if reason == "abort":
            self._rollout.clock.fail(AbortedError("the turn was ended before its end"))
        self._history += [*self._new, {"role": "assistant", "content": sample.text}]
        self._new, self._sampled, self._turn_end = [], turn.tokens, len(self._tokens)
        return turn

    async def observe(self, messages: Sequence[Message]) -> None:
        """See `contract.Session`."""
        rollout = self._rollout
        rollout.count_bytes(messages)
        prompt = self._opening.prompt
        if not self._spans and not self._branch:
            if isinstance(prompt, str):
                joined: Prompt = prompt + "".join(text_of(message) for message in messages)
            else:
                joined = [*prompt, *(dict(message) for message in messages)]
            await self.reopen(joined, tools=self._opening.tools)
            return
        if not self._spans and not self._sampled:
            raise ValueError("a branch that begins before a turn observes ids until it is drawn")
        new = [*self._new, *messages]
        ids = rollout.texts.extension(
            prompt,
            self._history[:-1],
            new,
            sampled=self._sampled,
            tools=self._opening.tools,
        )
        del self._tokens[self._turn_end :], self._mask[self._turn_end :]
        del self._logprobs[self._turn_end :], self._versions[self._turn_end :]
        self._new = new
        self._observe(ids)

    def observe_tokens(self, ids: Sequence[int]) -> None:
        """See `contract.Session`."""
        self._observe(ids)
        # Ids end what can be rendered anew: messages before them stay as they are.
        self._turn_end, self._sampled, self._new = len(self._tokens), (), []

    def _observe(self, ids: Sequence[int]) -> None:
        """Append ids if a token of the row's budget is left behind them."""
        if len(ids) >= self._room:
            self._full = self._rollout.spent = True
            return
        self._append(ids)

    def _append(self, ids: Sequence[int]) -> None:
        self._tokens += ids
        self._mask += [False] * len(ids)
        self._logprobs += [0.0] * len(ids)
        self._versions += [-1] * len(ids)

    async def reopen(
        self, messages: Prompt, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """See `contract.Session`."""
        if self._spans or self._opening.shared:
            raise ValueError("the prompt can't change once a turn was drawn; branch the row")
        if self._turn_end:
            raise ValueError("ids were observed before the first turn; send messages before ids")
        tokens = self._rollout.texts.opening(messages, tools)
        longest = len(tokens) + self._rollout.sampling.max_tokens
        self._opening = Opening(prompt=messages, tools=tools, max_tokens=longest)
        self._history = self._opening.messages()
        self._tokens, self._mask, self._logprobs, self._versions = [], [], [], []
        self._append(tokens)

    def branch(self, keep: int, *, messages: Sequence[Message] = ()) -> RowSession:
        """See `contract.Session`."""
        if not 0 <= keep <= len(self._tokens):
            raise ValueError(f"a row of {len(self._tokens)} ids can't share the first {keep}")
        turns = [span for span in (*self._opening.shared, *self._spans) if span.end <= keep]
        opening = replace(self._opening, history=tuple(messages), shared=tuple(turns))
        return self._rollout.add_row(self._tokens[:keep], opening)

    def row(self, turn_rewards: Sequence[float]) -> Row:
        """Return the row's columns; what follows its last turn was never answered and is cut off.

        Args:
            turn_rewards: of the turns in the order of their numbers.
        """
        end = self._spans[-1].end if self._spans else len(self._tokens)
        rewards = dict(enumerate(turn_rewards, start=1))
        return Row(
            branch=self._branch,
            tokens=self._tokens[:end],
            loss_mask=self._mask[:end],
            rollout_logprobs=self._logprobs[:end],
            weight_versions=self._versions[:end],
            turns=tuple(
                replace(span, reward=float(rewards.get(span.number, 0.0))) for span in self._spans
            ),
        )

    def _checksum(self, state: str) -> int:
        """Return the checksum of a state, or of the ids since the last turn."""
        if state:
            return zlib.crc32(state.encode())
        observed = self._tokens[self._spans[-1].end :] if self._spans else self._tokens
        return zlib.crc32(np.asarray(observed, dtype=np.int32).tobytes())
