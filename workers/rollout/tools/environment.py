"""Play rollouts in which the policy calls tools: the environment `environment=tools`.

`ToolEnvironment` is the choice of tools, which the driver makes; `ToolPlayer` plays with them in a
rollout worker: it draws a turn, reads its calls, has the tools called in other processes, and shows
the results, until a turn without calls or the end of a budget. Token ids are the session's. The
run's scorer scores the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from workers.engines.vllm.tool_calls import ToolCall, ToolCallParser
from workers.rollout.environments.contract import Outcome, Session, SpentError, Task
from workers.rollout.tools.content import as_parts
from workers.rollout.tools.pool import ToolPool, ToolResult
from workers.rollout.tools.server import ERROR, OK, WRONG, ToolServer
from workers.rollout.tools.toolset import Toolset

OBSERVE, FAIL = "observe", "fail"
TOOL, USER = "tool", "user"


class ToolFaultError(RuntimeError):
    """Fault of a tool where `on_tool_error=fail`: the sample fails with it."""


@dataclass(frozen=True, kw_only=True)
class ToolEnvironment:
    """Environment of an agent with tools.

    Example:
        ToolEnvironment(
            toolsets={
                "calculator": Functions(paths=["workers.rollout.tools.calculator.calculate"])
            },
            tool_parser="hermes",
        )

    Attributes:
        toolsets: by names that an experiment can override; a null takes a toolset out.
        tool_parser: name of vLLM's parser for the model's calls.
        on_tool_error: "observe": the policy sees that a tool raised, took too long or ended its
            process; "fail": the sample fails. Calls that the policy gets wrong are observed.
        observe_as: role of the messages that show results: "tool", or "user" for chat templates
            that know no tools.
        stop: strings that end a turn, such as the end of a call.
        max_calls: of one turn; the policy sees that further calls were not made.
        max_output_bytes: of the text of one result; the rest is cut.
        max_image_bytes: of the images of one result; the policy sees that one had more.
        max_memory_mib: that a tool process may allocate; None sets no limit.
        time_s: of one call, from its start.
        num_processes: calls that run at a time in one rollout worker.
    """

    toolsets: Mapping[str, Toolset | None]
    tool_parser: str
    on_tool_error: str = OBSERVE
    observe_as: str = TOOL
    stop: Sequence[str] = ()
    max_calls: int = 8
    max_output_bytes: int = 4096
    max_image_bytes: int = 4_194_304
    max_memory_mib: int | None = None
    time_s: float = 10.0
    num_processes: int = 4

    def __post_init__(self) -> None:
        key = "environment.player"
        if not self._chosen:
            raise ValueError(f"{key}.toolsets is empty; choose a tool, or environment=single_turn")
        for name, choices in (("on_tool_error", (OBSERVE, FAIL)), ("observe_as", (TOOL, USER))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{key}.{name}={getattr(self, name)} must be one of {', '.join(choices)}"
                )
        for name in ("max_calls", "max_output_bytes", "max_image_bytes", "time_s", "num_processes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{key}.{name}={getattr(self, name)} must be positive")

    @property
    def _chosen(self) -> dict[str, Toolset]:
        return {name: toolset for name, toolset in self.toolsets.items() if toolset is not None}

    def prepare(self, tokenizer: Any) -> ToolPlayer:
        """Start the tool processes; return the environment that plays with them.

        Raises:
            ValueError: vLLM has no such parser, or the tools can't be sent to another process.
            RuntimeError: the tools can't be built there.
        """
        server = ToolServer(
            toolsets=self._chosen,
            max_output_bytes=self.max_output_bytes,
            max_image_bytes=self.max_image_bytes,
            max_memory_mib=self.max_memory_mib,
        )
        pool = ToolPool(server, num_processes=self.num_processes, timeout_s=self.time_s)
        try:
            parser = ToolCallParser(self.tool_parser, tokenizer, pool.schemas)
        except BaseException:
            pool.close()
            raise
        return ToolPlayer(settings=self, pool=pool, parser=parser, tokenizer=tokenizer)


@dataclass(kw_only=True)
class _Tally:
    """Calls of one rollout so far, and how many of them had no result."""

    calls: int = 0
    errors: int = 0

    def outcome(self, response: str) -> Outcome:
        parts = {"tool_calls": float(self.calls), "tool_errors": float(self.errors)}
        return Outcome(response=response, parts=parts)


@dataclass(frozen=True, kw_only=True)
class ToolPlayer:
    """Environment whose tool processes run.

    Attributes:
        settings: of the environment.
        pool: of the tool processes.
        parser: of the model's calls.
        tokenizer: of the model.
    """

    never_blocks: ClassVar[bool] = True

    settings: ToolEnvironment
    pool: ToolPool
    parser: ToolCallParser
    tokenizer: Any
    _names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        names = frozenset(str(schema["function"]["name"]) for schema in self.pool.schemas)
        object.__setattr__(self, "_names", names)

    async def play(self, task: Task, session: Session) -> Outcome:
        """Play one rollout: see `contract.Environment`.

        Raises:
            ToolFaultError: a tool failed, and the environment was told to fail with it.
        """
        tally = _Tally()
        if not isinstance(task.prompt, str):
            await session.reopen(task.prompt, tools=self.pool.schemas)
        try:
            while True:
                turn = await session.draw(stop=self.settings.stop)
                parsed = self.parser.parse(self._text(turn.tokens))
                if parsed.fault is None and not parsed.calls:
                    return tally.outcome(turn.text)
                if parsed.fault is not None:
                    tally.errors += 1
                    wrong = ToolResult(status=WRONG, text=parsed.fault)
                    await session.observe(self._messages(turn.number, [("", wrong)]))
                else:
                    results = await self._results(parsed.calls, tally)
                    await session.observe(self._messages(turn.number, results))
        except SpentError:
            return tally.outcome("")  # the budget is spent without an answer

    def _text(self, tokens: Sequence[int]) -> str:
        """Return the text of a turn with its special tokens, but for the one that ended it."""
        ids = list(tokens)
        if ids and ids[-1] in self.tokenizer.all_special_ids:
            ids.pop()
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    async def _results(
        self, calls: Sequence[ToolCall], tally: _Tally
    ) -> list[tuple[str, ToolResult]]:
        """Make the calls of one turn beside each other; return name and result of each."""
        most = self.settings.max_calls
        made = await asyncio.gather(*(self._call(call) for call in calls[:most]))
        too_many = ToolResult(status=WRONG, text=f"at most {most} calls are made in one turn")
        results = [*made, *([too_many] * len(calls[most:]))]
        tally.calls += len(made)
        tally.errors += sum(result.status != OK for result in results)
        return [(call.name, result) for call, result in zip(calls, results, strict=True)]

    async def _call(self, call: ToolCall) -> ToolResult:
        if call.name not in self._names:
            known = ", ".join(sorted(self._names))
            return ToolResult(status=WRONG, text=f"there is no tool {call.name!r}, only {known}")
        result = await self.pool.call(call.name, call.arguments)
        if result.status == ERROR and self.settings.on_tool_error == FAIL:
            raise ToolFaultError(f"{call.name}: {result.text}")
        return result

    def _messages(
        self, turn: int, results: Sequence[tuple[str, ToolResult]]
    ) -> list[dict[str, Any]]:
        """Return the messages that show the results of one turn."""
        contents = [_content(result) for _, result in results]
        if self.settings.observe_as == USER:
            return [{"role": USER, "content": _joined(contents)}]
        return [
            {
                "role": TOOL,
                "name": name or "tool",
                "tool_call_id": f"call{(100 * turn + number) % 100_000:05d}",  # Mistral wants nine
                "content": content,
            }
            for number, ((name, _), content) in enumerate(zip(results, contents, strict=True))
        ]


def _content(result: ToolResult) -> str | list[dict[str, Any]]:
    """Return the content of a message that shows a result: text, or parts of text and images."""
    if result.content:
        return as_parts(result.content)
    return result.text if result.status == OK else f"error: {result.text}"


def _joined(contents: Sequence[str | list[dict[str, Any]]]) -> str | list[dict[str, Any]]:
    """Return several contents as one, a line each."""
    texts = [content for content in contents if isinstance(content, str)]
    if len(texts) == len(contents):
        return "\n".join(texts)
    parts: list[dict[str, Any]] = []
    for number, content in enumerate(contents):
        parts += as_parts(["\n"]) if number else []
        parts += as_parts([content]) if isinstance(content, str) else content
    return parts
