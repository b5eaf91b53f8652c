"""The endpoint answers the clients that agents use: those of OpenAI and of Anthropic."""

import asyncio

import pytest

from tests.workers.rollout.endpoint.served import TOKEN, Engine, encoder, served
from workers.rollout.endpoint.calls import CallError
from workers.rollout.endpoint.messages_format import messages_call

ADD = {
    "name": "add",
    "description": "Add.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
ASKED = [{"role": "user", "content": "1+2"}]


class Reader:
    """Finds one call of a tool in a turn that says "add"."""

    def check(self, tools):
        assert tools == [{"type": "function", "function": ADD}]

    def read(self, turn, tools):
        if turn.text != "add":
            return turn.text, []
        call = {"name": "add", "arguments": '{"a": 1}'}
        return "", [{"id": "c1", "type": "function", "function": call}]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return encoder(tmp_path_factory.mktemp("tokenizer"))


def play(tokens, work, *answers):
    async def run():
        async with served(Engine(tokens, *answers), ASKED, reader=Reader()) as own:
            found = await work(own)
            return found, own.rows()

    return asyncio.run(run())


@pytest.fixture
def openai_of():
    openai = pytest.importorskip("openai")
    return lambda own: openai.AsyncOpenAI(base_url=f"{own.url}/v1", api_key=TOKEN, max_retries=0)


@pytest.fixture
def anthropic_of():
    anthropic = pytest.importorskip("anthropic")
    return lambda own: anthropic.AsyncAnthropic(base_url=own.url, api_key=TOKEN, max_retries=0)


def test_the_client_of_openai_calls_a_tool_and_streams_the_answer(tokens, openai_of):
    async def work(own):
        client, tools = openai_of(own), [{"type": "function", "function": ADD}]
        first = await client.chat.completions.create(model="gpt", messages=ASKED, tools=tools)
        message = first.choices[0].message
        history = [
            *ASKED,
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "3"},
        ]
        stream = await client.chat.completions.create(
            model="gpt",
            messages=history,
            tools=tools,
            stream=True,
            stream_options={"include_usage": True},
        )
        said, usage = "", None
        async for chunk in stream:
            said += chunk.choices[0].delta.content or "" if chunk.choices else ""
            usage = chunk.usage or usage
        return message.tool_calls[0].function, said, usage.completion_tokens

    (function, said, counted), rows = play(tokens, work, "add", "three")
    assert (function.name, function.arguments, said, counted) == ("add", '{"a": 1}', "three", 6)
    assert [trained for _, trained in rows] == [["add<|im_end|>", "three<|im_end|>"]]


def test_the_client_of_openai_understands_a_refusal(tokens, openai_of):
    import openai

    async def work(own):
        with pytest.raises(openai.BadRequestError) as refused:
            await openai_of(own).chat.completions.create(model="m", messages=ASKED, n=3)
        own.url = own.url.replace("/s/", "/s/0")
        with pytest.raises(openai.AuthenticationError):
            await openai_of(own).chat.completions.create(model="m", messages=ASKED)
        return refused.value.param

    assert play(tokens, work, "x")[0] == "n"


def test_the_client_of_anthropic_calls_a_tool_and_streams_the_answer(tokens, anthropic_of):
    async def work(own):
        client = anthropic_of(own)
        tools = [
            {
                "name": "add",
                "description": "Add.",
                "input_schema": ADD["parameters"],
            }
        ]
        common = {"model": "claude", "max_tokens": 50, "tools": tools, "system": "be short"}
        first = await client.messages.create(messages=ASKED, **common)
        (used,) = first.content
        result = {"type": "tool_result", "tool_use_id": used.id, "content": "3"}
        history = [
            *ASKED,
            {"role": "assistant", "content": [used.model_dump(exclude_none=True)]},
            {"role": "user", "content": [result]},
        ]
        async with client.messages.stream(messages=history, **common) as stream:
            said = await stream.get_final_message()
        return first.stop_reason, used.input, said

    (reason, used, said), rows = play(tokens, work, "add", "three")
    assert (reason, used) == ("tool_use", {"a": 1})
    assert (said.content[0].text, said.stop_reason) == ("three", "end_turn")
    assert said.usage.output_tokens == 6
    (row,) = rows  # the history went on: no branch
    assert row[1] == ["add<|im_end|>", "three<|im_end|>"]
    assert row[0].startswith("<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\n1+2")
    assert "<|im_start|>tool\n3<|im_end|>" in row[0]


def test_a_turn_that_was_cut_says_so_to_anthropic(tokens, anthropic_of):
    async def work(own):
        return await anthropic_of(own).messages.create(
            model="claude", max_tokens=2, messages=ASKED, stop_sequences=["#"]
        )

    answer, _ = play(tokens, work, "12345")
    assert (answer.content[0].text, answer.stop_reason) == ("12", "max_tokens")


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [{"name": "f"}]}, "tools"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"mcp_servers": []}, "mcp_servers"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changed, param):
    with pytest.raises(CallError) as refused:
        messages_call({"messages": ASKED, "max_tokens": 3, **changed})
    assert refused.value.param == param


def test_thoughts_and_results_of_a_history_find_their_places():
    call = messages_call(
        {
            "max_tokens": 9,
            "thinking": {"type": "enabled"},
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": ""},
                        {"type": "text", "text": "b"},
                        {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c1", "content": "3"},
                        {"type": "text", "text": "go on"},
                    ],
                },
            ],
        }
    )
    used = {"name": "add", "arguments": {"a": 1}}
    assert call.given == [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": "b",
            "tool_calls": [{"id": "c1", "type": "function", "function": used}],
        },
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "user", "content": "go on"},
    ]
