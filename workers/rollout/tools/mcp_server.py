"""Offer the tools of an MCP server that a command line starts (Model Context Protocol, stdio).

Runs in a tool process, which starts the server and talks to it with the package `mcp`. Each tool
process has a server of its own: a server that keeps state keeps it for whatever rollouts come.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from workers.rollout.tools.toolset import Schema

# The server is in a session of its own, where the end of this process would leave it behind.
ENDS_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True, kw_only=True)
class _Connection:
    """Connection to a server, open as long as `stack` is held."""

    portal: Any  # calls into the thread's event loop
    client: Any
    stack: ExitStack


class MCPToolError(RuntimeError):
    """Error that a tool of the server reports."""


@dataclass(frozen=True, kw_only=True)
class MCPServer:
    """Toolset of all tools, or of some, that an MCP server lists.

    Example: MCPServer(command="npx -y @modelcontextprotocol/server-filesystem /data")

    Attributes:
        command: starts the server, split as a shell splits it; no shell runs.
        tools: names of the tools to offer; empty: all.
        env: variables that the server sees beside PATH, HOME and the like.
    """

    command: str
    tools: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not shlex.split(self.command):
            raise ValueError("an MCP server needs the command line that starts it: set `command`")

    def prepare(self) -> None:
        """Start the server and ask for its tools.

        Raises:
            ValueError: the server lacks a tool that is named.
            Exception: the server can't be started, or does not answer.
        """
        self.schemas()

    def schemas(self) -> Sequence[Schema]:
        """See `Toolset`."""
        return [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description or "",
                    "parameters": tool.input_schema,
                },
            }
            for tool in self._listed
        ]

    def call(self, name: str, arguments: Mapping[str, Any]) -> object:
        """See `Toolset`; images of the result are content parts.

        Raises:
            MCPToolError: the tool reports an error, wrong arguments among them.
        """
        portal, client = self._connection.portal, self._connection.client
        result = portal.call(client.call_tool, name, dict(arguments))
        texts = [part.text if part.type == "text" else f"[{part.type}]" for part in result.content]
        if result.is_error:
            raise MCPToolError("\n".join(texts))
        if all(part.type != "image" for part in result.content):
            return "\n".join(texts)
        return [
            {"type": "image", "image": f"data:{part.mime_type};base64,{part.data}"}
            if part.type == "image"
            else {"type": "text", "text": text}
            for part, text in zip(result.content, texts, strict=True)
        ]

    @cached_property
    def _connection(self) -> _Connection:
        """The thread that talks to the server, and the client in that thread."""
        from anyio.from_thread import start_blocking_portal
        from mcp.client.client import Client
        from mcp.client.stdio import StdioServerParameters

        server = StdioServerParameters(
            command=sys.executable,
            args=["-c", ENDS_WITH_PARENT, *shlex.split(self.command)],
            env=dict(self.env) or None,
            cwd=os.getcwd(),
        )
        stack = ExitStack()
        portal = stack.enter_context(start_blocking_portal())
        client = stack.enter_context(portal.wrap_async_context_manager(Client(server)))
        return _Connection(portal=portal, client=client, stack=stack)

    @cached_property
    def _listed(self) -> list[Any]:
        portal, client = self._connection.portal, self._connection.client
        page = portal.call(client.list_tools)
        found = list(page.tools)
        while page.next_cursor is not None:
            page = portal.call(partial(client.list_tools, cursor=page.next_cursor))
            found += page.tools
        missing = set(self.tools) - {tool.name for tool in found}
        if missing:
            names = ", ".join(tool.name for tool in found)
            raise ValueError(
                f"the MCP server {self.command!r} has no tool {sorted(missing)}; it has {names}"
            )
        return [tool for tool in found if not self.tools or tool.name in self.tools]
