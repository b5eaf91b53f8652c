"""A cell of the prompt column becomes what a template takes."""

import pytest

from workers.data.sources.messages import PromptFormat

AS_IS = PromptFormat()


def test_keys_that_parquet_filled_with_null_are_dropped():
    cell = [
        {"role": "user", "content": "1+1=", "name": None, "tool_calls": None},
        {
            "role": "assistant",
            "content": None,
            "name": None,
            "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1, "b": None}}}],
        },
    ]
    assert AS_IS.apply(cell) == [
        {"role": "user", "content": "1+1="},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}],
        },
    ]


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "1+", "image": None}, {"type": "text", "text": "1="}]
    assert AS_IS.apply([{"role": "user", "content": parts}]) == [
        {"role": "user", "content": "1+1="}
    ]


def test_parts_of_another_kind_stay():
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is this?"}]
    assert AS_IS.apply([{"role": "user", "content": parts}])[0]["content"] == parts


@pytest.mark.parametrize("cell", [None, 5, ["hello"], []])
def test_what_is_no_prompt_is_left_to_the_encoder(cell):
    assert PromptFormat(system_prompt="Be brief.", template="Q: {prompt}").apply(cell) == cell


def test_a_text_stays_a_text():
    assert AS_IS.apply("1+1=") == "1+1="
    assert PromptFormat(template="Q: {prompt}\nA:").apply("{1}+{1}=") == "Q: {1}+{1}=\nA:"


def test_a_text_becomes_a_chat_on_demand():
    assert PromptFormat(as_chat=True).apply("1+1=") == [{"role": "user", "content": "1+1="}]


def test_a_system_prompt_opens_chats_that_have_none():
    form = PromptFormat(system_prompt="Be brief.")
    opened = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1="}]
    assert form.apply("1+1=") == opened
    assert form.apply(opened[1:]) == opened
    own = [{"role": "system", "content": "Be long."}, opened[1]]
    assert form.apply(own) == own


def test_a_template_goes_around_the_last_user_message():
    chat = [
        {"role": "user", "content": "1+1="},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2="},
    ]
    filled = PromptFormat(template="{prompt} Think.").apply(chat)
    assert [message["content"] for message in filled] == ["1+1=", "2", "2+2= Think."]
    assert chat[2]["content"] == "2+2="  # the row itself is not changed
