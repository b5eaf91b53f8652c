"""Read the calls of tools in a turn, for agents that give their own schemas with every request.

Runs in the rollout worker. The parsers are vLLM's (`workers/engines/vllm/tool_calls.py`), one for
each set of schemas. A call that can't be read stays text: the agent sees what the policy wrote.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from workers.engines.vllm.tool_calls import ToolCallParser
from workers.rollout.environments.contract import Turn

ANY_TOOL = {"type": "function", "function": {"name": "any", "parameters": {"type": "object"}}}
NUM_PARSERS = 64  # sets of schemas that are kept


class TurnReader:
    """Reader of turns by one of vLLM's parsers.

    Args:
        name: of the parser, as `vllm serve --tool-call-parser` takes it.
        tokenizer: of the model.

    Raises:
        ValueError: vLLM has no such parser, or the parser refuses the tokenizer.
    """

    def __init__(self, name: str, tokenizer: Any) -> None:
        self._name, self._tokenizer = name, tokenizer
        self._parser_of = lru_cache(maxsize=NUM_PARSERS)(self._new_parser)
        self._parser_of(json.dumps([ANY_TOOL]))  # raises here rather than in a request

    def check(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """Raise a ValueError for schemas that are none."""
        self._parser_of(json.dumps(tools))

    def read(
        self, turn: Turn, tools: Sequence[Mapping[str, Any]]
    ) -> tuple[str, list[dict[str, Any]]]:
        """Return what a turn says beside its calls, and the calls as OpenAI writes them."""
        ids = list(turn.tokens)
        if ids and ids[-1] in self._tokenizer.all_special_ids:
            ids.pop()
        # Special tokens mark the calls of some models.
        text = str(self._tokenizer.decode(ids, skip_special_tokens=False))
        parsed = self._parser_of(json.dumps(tools)).parse(text)
        if parsed.fault is not None or not parsed.calls:
            return turn.text, []
        return parsed.text, [
            {
                "id": f"call_{uuid.uuid4().hex[:16]}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in parsed.calls
        ]

    def _new_parser(self, tools: str) -> ToolCallParser:
        return ToolCallParser(self._name, self._tokenizer, json.loads(tools))
