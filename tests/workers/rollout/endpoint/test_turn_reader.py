"""Calls of tools, from a turn to the agent and back into the history, by vLLM's parsers."""

import asyncio
import json

import pytest

from tests.workers.rollout.endpoint.served import Engine, encoder, served
from workers.rollout.endpoint.turn_reader import TurnReader

ASKED = [{"role": "user", "content": "1+2"}]
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return encoder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def reader(tokens):
    return TurnReader("pythonic", tokens.tokenizer)


def test_a_call_reaches_the_agent_and_its_result_the_policy(tokens, reader):
    async def play():
        answers = ("[add(a=1), add(a=2)]", "3")
        async with served(Engine(tokens, *answers), ASKED, reader=reader) as own:
            first = await own.chat(ASKED, tools=[ADD])
            calls = first["message"]["tool_calls"]
            results = [
                {"role": "tool", "tool_call_id": call["id"], "content": str(number)}
                for number, call in enumerate(calls)
            ]
            second = await own.chat([*ASKED, first["message"], *results], tools=[ADD])
            return first, second, own.rows()

    first, second, rows = asyncio.run(play())
    functions = [call["function"] for call in first["message"]["tool_calls"]]
    assert [(one["name"], json.loads(one["arguments"])) for one in functions] == [
        ("add", {"a": 1}),
        ("add", {"a": 2}),
    ]
    assert (first["finish_reason"], first["message"]["content"]) == ("tool_calls", None)
    assert second["message"] == {"role": "assistant", "content": "3"}
    (row,) = rows  # the history went on: no branch
    assert row[1] == ["[add(a=1), add(a=2)]<|im_end|>", "3<|im_end|>"]
    assert "tool\n0<|im_end|>\n<|im_start|>tool\n1<|im_end|>" in row[0]


def test_a_call_in_a_stream_has_its_place(tokens, reader):
    async def play():
        async with served(Engine(tokens, "[add(a=1)]"), ASKED, reader=reader) as own:
            body = {"messages": ASKED, "tools": [ADD], "stream": True}
            return (await own.post("chat/completions", body))[1]

    event = json.loads(asyncio.run(play()).split("\n\n")[0].removeprefix("data: "))
    (call,) = event["choices"][0]["delta"]["tool_calls"]
    assert (call["index"], call["function"]["arguments"]) == (0, '{"a": 1}')


def test_a_call_that_breaks_off_is_text(tokens, reader):
    async def play():
        async with served(Engine(tokens, "[add(a="), ASKED, reader=reader) as own:
            return await own.chat(ASKED, tools=[ADD])

    choice = asyncio.run(play())
    assert choice["message"] == {"role": "assistant", "content": "[add(a="}
    assert choice["finish_reason"] == "stop"


def test_schemas_that_are_none_are_refused(tokens, reader):
    async def play():
        async with served(Engine(tokens, "3"), ASKED, reader=reader) as own:
            return await own.post("chat/completions", {"messages": ASKED, "tools": [{"type": 1}]})

    status, text = asyncio.run(play())
    assert (status, json.loads(text)["error"]["param"]) == (400, "tools")


def test_an_unknown_parser_is_refused_before_the_first_rollout(tokens):
    with pytest.raises(ValueError, match="vLLM has no such parser; it has .*hermes"):
        TurnReader("no_such", tokens.tokenizer)
