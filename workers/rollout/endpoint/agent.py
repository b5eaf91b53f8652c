"""Let a program of the user play rollouts: a process for each, which calls the endpoint.

An environment of the rollout worker. The program may be written in any language and live in an
environment of its own; it finds the endpoint by the variables that OpenAI's and Anthropic's clients
read. Its exit ends the rollout: with the reward that it wrote, or with the reward that the run's
scorer gives to its answer. A program that fails costs one sample, and the end of its output is the
reason. Which turns the calls become is decided in `conversation.py`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray.util

from workers.rollout.endpoint.agent_process import (
    AgentExit,
    AgentJob,
    AgentProcess,
    running_agent,
)
from workers.rollout.endpoint.conversation import Conversation
from workers.rollout.endpoint.rollout_calls import RolloutCalls
from workers.rollout.endpoint.server import Endpoint
from workers.rollout.endpoint.turn_reader import TurnReader
from workers.rollout.environments.contract import Outcome, Session, Task

RESULT_KEYS = frozenset({"reward", "parts", "notes", "turn_rewards", "response"})


class AgentError(RuntimeError):
    """Agent that failed; the message has the end of its output."""


@dataclass(frozen=True, kw_only=True)
class Agent:
    """Environment that is a program.

    Attributes:
        command: program and arguments, as a shell would split them; no shell runs them.
        variables: environment variables for the program, as texts; a null leaves one out.
        max_calls: requests of one rollout, refused ones included.
        max_body_bytes: longest body of a request.
        tool_parser: name of vLLM's parser for calls of tools; None refuses requests with tools.

    Raises:
        ValueError: an empty or unreadable command, or a limit that is not positive.
    """

    command: str
    variables: Mapping[str, Any] = field(default_factory=dict)
    max_calls: int = 256
    max_body_bytes: int = 4_194_304
    tool_parser: str | None = None

    def __post_init__(self) -> None:
        given = {str(k): str(value) for k, value in self.variables.items() if value is not None}
        object.__setattr__(self, "variables", given)
        try:
            words = shlex.split(self.command or "")
        except ValueError as error:
            raise ValueError(
                f"environment.player.command={self.command!r} can't be split: {error}"
            ) from error
        if not words:
            raise ValueError(
                "environment.player.command is empty; name the program that plays a rollout"
            )
        for name in ("max_calls", "max_body_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"environment.player.{name} must be positive, got {getattr(self, name)}"
                )

    def prepare(self, tokenizer: Any) -> AgentPlayer:
        """Return the environment that plays.

        Raises:
            ValueError: vLLM has no such parser, or the parser does not fit the model.
        """
        reader = None if self.tool_parser is None else TurnReader(self.tool_parser, tokenizer)
        return AgentPlayer(self, reader)


class AgentPlayer:
    """Environment that starts programs, and serves them on a port of the rollout worker.

    Args:
        settings: of the environment.
        reader: finds calls of tools in turns; None where requests with tools are refused.
    """

    never_blocks = True

    def __init__(self, settings: Agent, reader: TurnReader | None) -> None:
        self._settings, self._reader = settings, reader
        self._serving: asyncio.Task[Endpoint] | None = None

    async def play(self, task: Task, session: Session) -> Outcome:
        """Start the program and wait for its end.

        Raises:
            AgentError: it failed, made no call, or wrote an unreadable result.
            FloodError: it made too many calls.
            Exception: the engine's fault.
        """
        endpoint = await self._endpoint()
        calls = RolloutCalls(
            token=secrets.token_hex(24),
            conversation=Conversation(session, task.prompt, reader=self._reader),
            max_calls=self._settings.max_calls,
            over=asyncio.get_running_loop().create_future(),
        )
        url = endpoint.open(calls)
        try:
            async with running_agent(self._job(task, url, calls.token)) as agent:
                return await self._watch(agent, calls)
        finally:
            await endpoint.close(url)

    async def _watch(self, agent: AgentProcess, calls: RolloutCalls) -> Outcome:
        """Wait for the end of the program, or of the rollout."""
        try:
            ends: set[asyncio.Future[Any]] = {agent.exited, calls.over}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if calls.over.done():
                calls.over.result()
            return self._outcome(await agent.exited, calls.conversation)
        except asyncio.CancelledError as error:
            # A rollout whose time is over is cancelled: the note tells what the program did.
            error.add_note(_output(await agent.end()))
            raise

    def _job(self, task: Task, url: str, token: str) -> AgentJob:
        return AgentJob(
            command=shlex.split(self._settings.command),
            variables={
                "OPENAI_BASE_URL": f"{url}/v1",
                "OPENAI_API_KEY": token,
                "ANTHROPIC_BASE_URL": url,
                "ANTHROPIC_API_KEY": token,
                **self._settings.variables,
            },
            task={
                "uid": task.uid,
                "prompt": task.prompt,
                "ground_truth": task.ground_truth,
                "columns": dict(task.columns),
                "sibling": task.sibling,
            },
        )

    def _outcome(self, ended: AgentExit, conversation: Conversation) -> Outcome:
        """Return the outcome of a program that ended."""
        if ended.code != 0:
            raise AgentError(
                f"exit code {ended.code} after {ended.seconds:.1f} s; {_output(ended)}"
            )
        if conversation.last_text is None:
            raise AgentError(f"ended without a turn; {_output(ended)}")
        times = {"agent_s": ended.seconds}
        if ended.result is None:
            return Outcome(parts=times, response=conversation.last_text)
        result = _read_result(ended.result)
        return Outcome(
            reward=result.get("reward"),
            parts={**result.get("parts", {}), **times},
            notes=result.get("notes", {}),
            turn_rewards=result.get("turn_rewards", ()),
            response=result.get("response", conversation.last_text),
        )

    async def _endpoint(self) -> Endpoint:
        """Return the server, started by the first rollout."""
        if self._serving is None:
            self._serving = asyncio.create_task(self._started())
        return await asyncio.shield(self._serving)

    async def _started(self) -> Endpoint:
        endpoint = Endpoint(max_body_bytes=self._settings.max_body_bytes)
        await endpoint.start(ray.util.get_node_ip_address())
        return endpoint


def _read_result(text: str) -> dict[str, Any]:
    """Return what a program wrote to the file that `BALLAST_RESULT` names."""
    try:
        result = json.loads(text)
    except ValueError as error:
        raise AgentError(f"wrote a result that is not JSON: {error}") from error
    if not isinstance(result, dict) or result.keys() - RESULT_KEYS:
        raise AgentError(
            f"wrote a result that is no object of {', '.join(sorted(RESULT_KEYS))}: {text[:100]!r}"
        )
    for name in ("parts", "notes"):
        if not isinstance(result.get(name, {}), dict):
            raise AgentError(f"wrote {name} that are no object: {result[name]!r}")
    return result


def _output(ended: AgentExit) -> str:
    words = " ".join(ended.tail.split())
    return f"output ends: {words[-150:]!r}" if words else "no output"
