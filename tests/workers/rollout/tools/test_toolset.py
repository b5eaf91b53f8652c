import pytest

from tests.workers.rollout.tools import hostile
from workers.rollout.tools.toolset import Functions, TypedFunction, WrongCallError, as_text

HOSTILE = "tests.workers.rollout.tools.hostile"


def test_a_functions_hints_and_docstring_make_its_schema():
    assert TypedFunction(hostile.add).schema == {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "the first number, or the only one."},
                    "b": {"type": "integer", "description": "the second.", "default": 1},
                },
                "required": ["a"],
            },
        },
    }


def test_a_list_and_a_flag_keep_their_types_in_the_schema():
    properties = TypedFunction(hostile.describe).schema["function"]["parameters"]["properties"]
    assert properties["names"] == {
        "type": "array",
        "items": {"type": "string"},
        "description": "of things.",
    }
    assert properties["deep"]["type"] == "boolean"


def test_a_call_fills_in_defaults_and_returns_what_json_can_hold():
    tools = Functions(paths=[f"{HOSTILE}.add", f"{HOSTILE}.describe"])
    tools.prepare()
    assert tools.call("add", {"a": 2}) == 3
    assert as_text(tools.call("describe", {"names": ["é"]})) == '{"names": ["é"], "deep": false}'


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "a: Field required"),
        ({"a": "many"}, "a: Input should be a valid integer"),
        ({"a": 1, "c": 2}, "c: Extra inputs are not permitted"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict, why: str):
    with pytest.raises(WrongCallError, match=why):
        TypedFunction(hostile.add).call(arguments)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("add", "no dotted path"),
        (f"{HOSTILE}.nothing", "has no function 'nothing'"),
        (f"{HOSTILE}.untyped", "needs a type hint for a"),
        (f"{HOSTILE}.silent", "has no docstring"),
    ],
)
def test_a_function_that_makes_no_tool_is_refused_with_the_reason(path: str, why: str):
    with pytest.raises(ValueError, match=why):
        Functions(paths=[path]).prepare()
