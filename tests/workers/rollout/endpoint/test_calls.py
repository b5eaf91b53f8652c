"""Bodies of calls, as clients write them, and what is read from them."""

import pytest

from workers.rollout.endpoint.calls import Call, CallError, chat_call, read_messages, text_call
from workers.rollout.endpoint.messages_format import messages_call


def test_a_chat_call_with_all_that_is_read():
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    body = {
        "model": "gpt-x",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "2+3="}]}],
        "tools": tools,
        "max_tokens": 9,
        "max_completion_tokens": 16,
        "stop": "\n",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.3,
        "response_format": None,
    }
    assert chat_call(body) == Call(
        given=[{"role": "user", "content": "2+3="}],
        tools=tools,
        max_tokens=16,
        stop=("\n",),
        stream=True,
        stream_usage=True,
        model="gpt-x",
    )


def test_messages_of_tools_keep_what_templates_read():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    read = read_messages(
        [
            {"role": "developer", "content": "be short", "cache": True},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
            {"role": "tool", "tool_call_id": "c1", "name": "add", "content": "2"},
        ]
    )
    assert read == [
        {"role": "system", "content": "be short"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**call, "function": {"name": "add", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "2", "name": "add", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize("prompt", [None, "", ["a", "b"], [1, 2], 7])
def test_a_prompt_is_one_text(prompt):
    with pytest.raises(CallError, match="prompt must be one text"):
        text_call({"prompt": prompt})


def test_a_prompt_in_a_list_of_one():
    assert text_call({"prompt": ["ab"]}).given == "ab"


@pytest.mark.parametrize("call", [7, {}, {"function": "add"}, {"id": "x", "function": None}])
def test_a_call_without_a_function_is_refused(call):
    with pytest.raises(CallError, match="has a tool call without a function"):
        read_messages(
            [{"role": "assistant", "tool_calls": [call]}, {"role": "user", "content": ""}]
        )


def test_calls_and_tools_that_are_no_list_are_refused():
    answer = {"role": "assistant", "tool_calls": 7}
    with pytest.raises(CallError, match=r"messages\[0\] has tool_calls that are no list"):
        chat_call({"messages": [answer, {"role": "user", "content": "?"}]})
    with pytest.raises(CallError, match="tools must be a list"):
        messages_call({"messages": [{"role": "user", "content": "?"}], "max_tokens": 3, "tools": 7})


def test_arguments_that_no_reader_reads_stay_as_the_policy_wrote_them():
    deep = "[" * 100_000
    call = {"id": "x", "function": {"name": "add", "arguments": deep}}
    read = read_messages(
        [{"role": "assistant", "tool_calls": [call]}, {"role": "user", "content": ""}]
    )
    assert read[0]["tool_calls"][0]["function"]["arguments"] == deep


ADDRESS = "data:image/png;base64,AAEC"
SHOWN = [{"type": "text", "text": "see"}, {"type": "image", "image": ADDRESS}]


def test_images_of_either_format_become_parts_of_the_message():
    openai = [SHOWN[0], {"type": "image_url", "image_url": {"url": ADDRESS, "detail": "low"}}]
    source = {"type": "base64", "media_type": "image/png", "data": "AAEC"}
    anthropic = [SHOWN[0], {"type": "image", "source": source}]
    expected = [{"role": "user", "content": SHOWN}]
    assert read_messages([{"role": "user", "content": openai}]) == expected
    sent = {"messages": [{"role": "user", "content": anthropic}], "max_tokens": 3}
    assert messages_call(sent).given == expected
    result = {"type": "tool_result", "tool_use_id": "t", "content": anthropic}
    sent = {"messages": [{"role": "user", "content": [result]}], "max_tokens": 3}
    assert messages_call(sent).given == [{"role": "tool", "tool_call_id": "t", "content": SHOWN}]


@pytest.mark.parametrize("url", [None, "https://x/a.png", "file:///etc/passwd", "/etc/passwd"])
def test_an_image_that_is_not_in_the_request_is_refused(url):
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(CallError, match=r"messages\[0\] has an image without its data"):
        read_messages([{"role": "user", "content": parts}])


def test_the_assistant_shows_no_image():
    parts = [{"type": "image_url", "image_url": {"url": ADDRESS}}]
    with pytest.raises(CallError, match="only text and images are read"):
        read_messages(
            [{"role": "assistant", "content": parts}, {"role": "user", "content": "and?"}]
        )
