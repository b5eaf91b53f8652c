"""Answer calls of tools: the part of a tool process that holds the toolsets.

Runs in a tool process (`workers/reward/child.py` is its script), which the pool kills where a call
takes too long. Knows no conversation and no other process.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.data.trajectory import reason_of
from workers.rollout.tools.content import Content, as_json, content_of
from workers.rollout.tools.toolset import Toolset, WrongCallError, as_text

OK, WRONG, ERROR = "ok", "wrong", "error"  # of a call: answered, not callable so, raised


@dataclass(frozen=True, kw_only=True)
class ToolServer:
    """Server of all toolsets of an environment.

    Example:
        ToolServer(
            toolsets={"calculator": Functions(paths=["workers.rollout.tools.calculator.calculate"])}
        )

    Attributes:
        toolsets: by the names that the configuration gives them.
        max_output_bytes: of the text of a result; the rest is cut, and the result says so.
        max_image_bytes: of the images of a result; one with more is an error.
        max_memory_mib: that the process may allocate; None sets no limit.
    """

    toolsets: Mapping[str, Toolset]
    max_output_bytes: int = 4096
    max_image_bytes: int = 4_194_304
    max_memory_mib: int | None = None

    def prepare(self) -> list[dict[str, Any]]:
        """Prepare the toolsets; return the schemas of all tools, one a name.

        Raises:
            ValueError: two toolsets have a tool of the same name.
        """
        if self.max_memory_mib is not None:
            limit = self.max_memory_mib << 20
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        schemas: dict[str, dict[str, Any]] = {}
        for title, toolset in self.toolsets.items():
            toolset.prepare()
            for schema in toolset.schemas():
                name = schema["function"]["name"]
                if name in schemas:
                    raise ValueError(f"toolset {title} has a second tool {name!r}; leave one out")
                schemas[name] = dict(schema)
        return list(schemas.values())

    def serve(self, item: tuple[str, Mapping[str, Any]]) -> list[Any]:
        """Call the tool that `item` names with its arguments; return status and result.

        The result is a text, or a list as `content.as_json` writes it where it shows an image.
        """
        name, arguments = item
        try:
            value = self._owner(name).call(name, arguments)
            content = content_of(value)
            if content is None:
                return [OK, cut(as_text(value), self.max_output_bytes)]
            content = cut_texts(content, self.max_output_bytes)
            return [OK, as_json(content, max_bytes=self.max_image_bytes)]
        except WrongCallError as error:
            return [WRONG, cut(str(error), self.max_output_bytes)]
        # SystemExit and KeyboardInterrupt too: a tool must not end its process politely.
        except BaseException as error:
            return [ERROR, cut(reason_of(error), self.max_output_bytes)]

    def _owner(self, name: str) -> Toolset:
        for toolset in self.toolsets.values():
            if any(schema["function"]["name"] == name for schema in toolset.schemas()):
                return toolset
        raise WrongCallError(f"there is no tool {name!r}")


def cut_texts(content: Content, max_bytes: int) -> list[str | bytes]:
    """Return a content whose texts have at most `max_bytes` together, as `cut` cuts them."""
    found: list[str | bytes] = []
    left = max_bytes
    for part in content:
        found.append(cut(part, left) if isinstance(part, str) else part)
        if isinstance(part, str):
            left = max(0, left - len(part.encode(errors="replace")))
    return found


def cut(text: str, max_bytes: int) -> str:
    """Return a text of at most `max_bytes` in UTF-8, and say so behind it if it was longer."""
    data = text.encode(errors="replace")
    if len(data) <= max_bytes:
        return data.decode()
    shown = data[:max_bytes].decode(errors="ignore")
    return f"{shown}\n[cut: the first {max_bytes} of {len(data)} bytes]"
