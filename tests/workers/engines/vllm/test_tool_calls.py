import pytest

from tests.workers.rollout.chat_templates import FORMATS, tokenizer_of
from workers.engines.vllm.tool_calls import ParsedTurn, ToolCall, ToolCallParser

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
ONE = ToolCall(name="add", arguments={"a": 1})
PARSERS = {
    "hermes": "qwen2.5",
    "qwen3_xml": "qwen3",
    "mistral": "mistral",
    "deepseek_v3": "deepseek",
    "pythonic": "smollm",
}
XML = "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"


def parser(name: str) -> ToolCallParser:
    return ToolCallParser(name, tokenizer_of(PARSERS[name]), [ADD])


def call_of(name: str) -> str:
    return {"qwen3_xml": XML, "pythonic": "[add(a=1)]"}.get(name, FORMATS[PARSERS[name]].call)


@pytest.mark.parametrize("name", PARSERS)
def test_a_call_is_read_in_the_format_of_its_model(name: str):
    assert parser(name).parse(call_of(name)).calls == [ONE]


@pytest.mark.parametrize("name", PARSERS)
def test_an_answer_has_no_call(name: str):
    assert parser(name).parse("they are 4") == ParsedTurn(text="they are 4")
    assert parser(name).parse("") == ParsedTurn(text="")


@pytest.mark.parametrize("name", PARSERS)
def test_a_call_that_breaks_off_is_no_answer(name: str):
    half = call_of(name)[: len(call_of(name)) // 2]
    broken = "<tool_call>\n<func" if name == "qwen3_xml" else half  # it completes a half call
    parsed = parser(name).parse(broken)
    assert (parsed.calls, parsed.fault) == ((), "not a call that can be read")
    assert parsed.text == broken


def test_parallel_calls_and_the_text_before_them_are_read():
    text = f"let me add.\n{FORMATS['qwen2.5'].call}\n{FORMATS['qwen2.5'].call}"
    assert parser("hermes").parse(text) == ParsedTurn(text="let me add.\n", calls=[ONE, ONE])
    assert parser("pythonic").parse("[add(a=1), add(a=1)]").calls == [ONE, ONE]


def test_one_turn_leaves_nothing_for_the_next():
    own = parser("qwen3_xml")
    own.parse(XML[: len(XML) // 2])
    assert own.parse(XML).calls == [ONE]


def test_arguments_that_are_no_mapping_are_a_fault():
    turn = '<tool_call>\n{"name": "add", "arguments": [1]}\n</tool_call>'
    assert parser("hermes").parse(turn).fault == (
        "the arguments of add are no mapping of names to values"
    )


def test_arguments_too_deep_to_be_read_are_a_fault_of_the_call():
    turn = '<tool_call>\n{"name": "add", "arguments": ' + "[" * 100_000 + "]" * 100_000
    assert "not a call that can be read" in parser("hermes").parse(turn + "}\n</tool_call>").fault


def test_a_parser_that_does_not_exist_or_fit_the_tokenizer_is_refused():
    with pytest.raises(ValueError, match=r"tool_parser=hermas: vLLM has no such parser.*hermes"):
        ToolCallParser("hermas", tokenizer_of("qwen2.5"), [ADD])
    with pytest.raises(ValueError, match=r"tool_parser=llama3_json does not fit.*python_tag"):
        ToolCallParser("llama3_json", tokenizer_of("qwen2.5"), [ADD])
