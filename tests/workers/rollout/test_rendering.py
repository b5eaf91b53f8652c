from typing import Any

import pytest

from tests.workers.rollout.chat_templates import CHATML, FORMATS, tokenizer_of
from workers.models.tokenizer import build_tokenizer
from workers.rollout.rendering import TurnRenderer

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
QUESTION = {"role": "user", "content": "how many are they?"}
AGAIN = {"role": "user", "content": "and now?"}
SUM = {"role": "tool", "name": "add", "tool_call_id": "call00001", "content": "the sum is 4"}
WITH_TOOLS = [name for name, form in FORMATS.items() if form.call is not None]


def renderer_of(name: str, **settings: Any) -> TurnRenderer:
    return TurnRenderer(tokenizer_of(name), options=dict(FORMATS[name].options), **settings)


def ids(name: str, text: str) -> list[int]:
    return list(tokenizer_of(name)(text, add_special_tokens=False)["input_ids"])


def rendered(name: str, messages: list[dict], *, opens: bool, tools: Any = None) -> list[int]:
    text = tokenizer_of(name).apply_chat_template(
        messages,
        tools=tools,
        add_generation_prompt=opens,
        tokenize=False,
        **dict(FORMATS[name].options),
    )
    return ids(name, text)


def written(name: str, answer: str) -> str:
    """Return what a policy of the format writes to say `answer`, after the opening."""
    return {
        "mistral": f" {answer}",
        "gpt-oss": f"<|channel|>final<|message|>{answer}",
    }.get(name, answer)


def without_empty_thought(name: str, recorded: list[int], place: int) -> list[int]:
    """Return ids without the empty thought that ends at `place`, which this format drops."""
    thought = ids(name, "<think>\n\n</think>\n\n")
    assert recorded[place - len(thought) : place] == thought
    return recorded[: place - len(thought)] + recorded[place:]


@pytest.mark.parametrize("name", FORMATS)
def test_recorded_ids_are_those_of_the_rendered_history(name: str):
    renderer, form = renderer_of(name), FORMATS[name]
    opening = renderer.opening([QUESTION])
    sampled = ids(name, written(name, "they are 4") + form.end)
    recorded = opening + sampled + renderer.extension([QUESTION], [AGAIN], sampled=sampled)
    answer = {"role": "assistant", "content": "they are 4"}
    history = rendered(name, [QUESTION, answer, AGAIN], opens=True)
    if name == "gpt-oss":  # its history has <|end|> in the place of the <|return|> that was sampled
        place = len(opening) + len(sampled) - 1
        assert [recorded[place]] == ids(name, "<|return|>")
        history = [*history[:place], recorded[place], *history[place + 1 :]]
    if name == "qwen3 without thoughts":
        recorded = without_empty_thought(name, recorded, len(opening))
    assert recorded == history


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_recorded_ids_are_those_of_the_history_with_a_tool(name: str):
    renderer, form = renderer_of(name), FORMATS[name]
    opening = renderer.opening([QUESTION], tools=[ADD])
    sampled = ids(name, str(form.call) + (form.call_end or form.end))
    new = renderer.extension([QUESTION], [SUM], sampled=sampled, tools=[ADD])
    recorded = opening + sampled + new
    deepseek = name == "deepseek"  # its calls have no content, and arguments as text
    function = {"name": "add", "arguments": '{"a": 1}' if deepseek else {"a": 1}}
    calling = {
        "role": "assistant",
        "content": None if deepseek else "",
        "tool_calls": [{"id": "call00001", "type": "function", "function": function}],
    }
    history = rendered(name, [QUESTION, calling, SUM], opens=True, tools=[ADD])
    if name == "qwen3 without thoughts":
        recorded = without_empty_thought(name, recorded, len(opening))
    assert recorded == history


@pytest.mark.parametrize("name", FORMATS)
def test_the_end_of_a_turn_is_added_where_it_was_not_sampled(name: str):
    renderer, form = renderer_of(name), FORMATS[name]
    cut = ids(name, written(name, "they ar"))
    ended = [*cut, *ids(name, form.end)]
    behind_cut = renderer.extension([QUESTION], [AGAIN], sampled=cut)
    close = {"gpt-oss": "<|end|>"}.get(name, form.end)
    assert behind_cut == ids(name, close) + renderer.extension([QUESTION], [AGAIN], sampled=ended)


def test_another_special_token_that_ended_a_response_is_not_doubled():
    sampled = ids("llama3", "they are 4<|eom_id|>")
    by_itself = renderer_of("llama3").extension([QUESTION], [AGAIN], sampled=sampled)
    assert tokenizer_of("llama3").decode(by_itself).startswith("<|eot_id|><|start_header_id|>")
    told = renderer_of("llama3", end_token_ids=sampled[-1:])
    extension = told.extension([QUESTION], [AGAIN], sampled=sampled)
    assert tokenizer_of("llama3").decode(extension).startswith("<|start_header_id|>user")


def test_a_token_that_stopped_the_sampling_inside_a_turn_does_not_end_the_turn():
    sampled = ids("qwen2.5", "a)")
    renderer = renderer_of("qwen2.5", end_token_ids=sampled[-1:])
    extension = renderer.extension([QUESTION], [AGAIN], sampled=sampled)
    assert tokenizer_of("qwen2.5").decode(extension).startswith("<|im_end|>\n<|im_start|>user")


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "llama3", "mistral", "deepseek"])
def test_answers_to_parallel_calls_are_rendered_together(name: str):
    two = [SUM, {**SUM, "tool_call_id": "call00002", "content": "and 7"}]
    sampled = ids(name, str(FORMATS[name].call) + FORMATS[name].end)
    extension = renderer_of(name).extension([QUESTION], two, sampled=sampled)
    text = tokenizer_of(name).decode(extension)
    assert text.index("the sum is 4") < text.index("and 7")
    assert "standin" not in text and "add" not in text.replace("address", "")


@pytest.mark.parametrize("name", FORMATS)
def test_a_conversation_may_contain_the_text_of_the_stand_in(name: str):
    renderer = renderer_of(name)
    sampled = ids(name, FORMATS[name].end)
    new = {"role": "user", "content": "standin and standinx"}
    extension = renderer.extension([QUESTION], [new], sampled=sampled)
    plain = renderer.extension([QUESTION], [AGAIN], sampled=sampled)
    expected = tokenizer_of(name).decode(plain).replace("and now?", "standin and standinx")
    assert tokenizer_of(name).decode(extension) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_a_prompt_of_plain_text_has_no_history(name: str):
    renderer = renderer_of(name)
    sampled = ids(name, FORMATS[name].end)
    alone = renderer.extension([], [AGAIN], sampled=sampled)
    assert alone == renderer.extension([QUESTION], [AGAIN], sampled=sampled)


def test_the_template_of_the_tiny_models_takes_tools_without_showing_calls():
    tokenizer = build_tokenizer(model_max_length=512)
    sampled = list(tokenizer("add(1)<|im_end|>")["input_ids"])
    extension = TurnRenderer(tokenizer).extension([QUESTION], [SUM], sampled=sampled)
    expected = "\n<|im_start|>tool\nthe sum is 4<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(extension) == expected


def test_a_format_without_special_tokens_closes_nothing():
    tokenizer = build_tokenizer(model_max_length=512)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    sampled = list(tokenizer("4<|im_end|>")["input_ids"])
    extension = TurnRenderer(tokenizer).extension([QUESTION], [AGAIN], sampled=sampled)
    assert tokenizer.decode(extension) == "\nuser: and now?\nassistant: "


@pytest.mark.parametrize(
    ("name", "drops"),
    [
        ("smollm", ()),
        ("qwen2.5", ()),
        ("qwen3", ("thoughts",)),
        ("llama3", ("white space",)),
        ("mistral", ("white space",)),
        ("gemma", ("white space",)),
        ("deepseek", ("thoughts",)),
        ("gpt-oss", ()),
    ],
)
def test_a_renderer_says_what_its_template_drops_from_history(name: str, drops: tuple[str, ...]):
    assert renderer_of(name).drops == drops


def test_a_template_that_refuses_a_role_is_named_with_its_own_reason():
    with pytest.raises(ValueError, match="roles.*'tool'.*alternate"):
        renderer_of("gemma").extension([QUESTION], [SUM], sampled=[1])


def test_no_new_message_and_no_template_are_refused():
    with pytest.raises(ValueError, match="no new message"):
        renderer_of("gemma").extension([QUESTION], [], sampled=[1])
    tokenizer = build_tokenizer(model_max_length=512)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        TurnRenderer(tokenizer)


def test_ids_are_equal_for_the_format_of_chatml_on_the_projects_own_tokenizer():
    tokenizer = build_tokenizer(model_max_length=512)
    tokenizer.chat_template = CHATML
    renderer = TurnRenderer(tokenizer)
    sampled = list(tokenizer("4<|im_end|>")["input_ids"])
    recorded = renderer.opening([QUESTION]) + sampled
    recorded += renderer.extension([QUESTION], [AGAIN], sampled=sampled)
    history = [QUESTION, {"role": "assistant", "content": "4"}, AGAIN]
    assert recorded == list(
        tokenizer.apply_chat_template(
            history, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
    )
