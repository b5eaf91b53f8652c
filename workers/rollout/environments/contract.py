"""Define the contract of environments: a `Task` is played in a `Session` to an `Outcome`.

The rollout worker calls `Environment.play` once for every rollout, in a thread with an event loop
of its own, or in a process (`isolation/`); on the worker's event loop where the environment says
`never_blocks = True`. The environment decides what is drawn and what the policy gets to see; the
session owns all the rest: token ids, loss masks, log-probs, weight versions, seeds and budgets. A
token that was sampled is never rendered again. Nothing is sampled or scored here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Message = Mapping[str, Any]  # of a chat: "role", "content" and what a template reads besides
Prompt = str | list[dict[str, Any]]  # text, or chat messages


class SpentError(RuntimeError):
    """Draw beyond a budget of the rollout. Uncaught, it ends the rollout as cut at its length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One row of a prompt file, to be played once.

    Example, the second sibling of a row:
        Task(
            uid="train:7",
            prompt="guess 0-9:",
            ground_truth="5",
            columns={"dataset": "guessing"},
            sibling=1,
        )

    Attributes:
        uid: name of the row, the same for all siblings.
        prompt: text, or chat messages; the session has its ids already.
        ground_truth: of the row; of a list, any is right; None where the file has none.
        columns: all other columns of the row.
        sibling: number of this rollout among those of the row, from 0.
    """

    uid: str
    prompt: Prompt
    ground_truth: str | list[str] | None
    columns: Mapping[str, Any] = field(default_factory=dict)
    sibling: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One turn that the policy sampled.

    Example, the first turn, of two tokens of which the second ends it:
        Turn(number=1, text="5", tokens=(55, 2), finish_reason="stop")

    Attributes:
        number: of the turn in its rollout, from 1.
        text: without special tokens.
        tokens: as sampled, the end token included if one was sampled.
        finish_reason: "stop", or "length" where a limit of tokens cut the turn.
    """

    number: int
    text: str
    tokens: Sequence[int]
    finish_reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Result of one rollout.

    Example, a game of two turns of which the second was right:
        Outcome(reward=1.0, parts={"correct": 1.0}, turn_rewards=(0.0, 1.0))

    Example, a rollout that the scorer scores by its last answer:
        Outcome(response="5")

    Attributes:
        reward: of the whole rollout; None: the run's scorer scores it.
        parts: numbers beside the reward, which become metrics.
        notes: texts beside the reward, which are recorded.
        turn_rewards: share of the reward that each turn earned, in the order of the turns' numbers;
            may be shorter than the rollout. What is left of the reward is earned at the end.
        response: text that the scorer sees; None: the texts of all turns, a line each.
    """

    reward: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    turn_rewards: Sequence[float] = ()
    response: str | None = None


class Session(Protocol):
    """Token ids of one row of a rollout, which grow by turns and by observations."""

    @property
    def tokens(self) -> Sequence[int]:
        """Ids so far, those of the prompt included."""

    @property
    def may_draw(self) -> bool:
        """True while a turn and a token are left of the rollout's budgets."""

    async def draw(
        self, *, max_tokens: int | None = None, stop: Sequence[str] = (), state: str = ""
    ) -> Turn:
        """Sample a turn behind the ids so far.

        Args:
            max_tokens: bound of this turn, beside the budgets of the run.
            stop: strings that end this turn, beside those of the run.
            state: name of the environment's state before the turn, for credit that compares the
                turns of siblings in equal states (`gigpo`); empty: what was observed last.

        Raises:
            SpentError: no turn or no token is left.
            Exception: the engine's fault; the rollout is over, whatever the environment does.
        """

    async def observe(self, messages: Sequence[Message]) -> None:
        """Append what the policy is to see next, and the opening of its next turn.

        Only the new messages are rendered. Before the first turn they join the prompt. Messages
        for which no token is left are not appended: the row is spent. A content may be a list of
        parts, of the types "text", "image" and "image_url"; an image is bytes, a picture of PIL, a
        path or a `data:` address.

        Raises:
            ValueError: more than `environment.max_observation_bytes`, or than `max_image_bytes` of
                images, in one rollout; more images than `data.images.max_per_prompt`; an image that
                can't be read; messages that the chat template refuses.
        """

    def observe_tokens(self, ids: Sequence[int]) -> None:
        """Append ids, for an environment that has ids and no messages; bounds as in `observe`."""

    async def reopen(
        self, messages: Prompt, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Replace the row's prompt before its first turn, by one that the environment wrote.

        A branch that shares no turn (`branch(0)`) gets a prompt of its own.

        Args:
            messages: text, or chat messages with images as in `observe`. `<image>` in a text, and a
                part without data, stand for the images of the task's own prompt, all of them.
            tools: JSON schemas of functions that the chat template describes.

        Raises:
            ValueError: a turn was drawn, the prompt has more than `data.max_prompt_tokens`, or an
                image is refused as in `observe`.
        """

    def branch(self, keep: int, *, messages: Sequence[Message] = ()) -> Session:
        """Begin another row of the same rollout, which shares the first `keep` ids of this one.

        For a history that was rewritten. The shared ids train in the row where they were sampled.

        Args:
            keep: ids that are shared.
            messages: the history as it reads now, for later calls of `observe`.

        Raises:
            ValueError: the row has fewer ids, an image ends behind the last of them, or the rollout
                has 64 more rows than it may have turns.
        """


class Environment(Protocol):
    """Interface of an environment."""

    async def play(self, task: Task, session: Session) -> Outcome:
        """Play one rollout.

        A cancellation must end it: a rollout that goes on is left behind, and draws no more.

        Args:
            task: the row to play.
            session: holds the ids of the row's prompt.
        """
