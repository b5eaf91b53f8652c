"""Places of a row from which a history goes on, found without a server or an engine."""

import pytest

from workers.rollout.endpoint.pieces import Given, Said, Thread, find_place, is_same_turn


def thread(*pieces, tools=None):
    return Thread(row=None, tools=tools, pieces=list(pieces))


TEXT = thread(
    Given(content="ab"),
    Said(forms=["c\n", "c"], start=2, end=4),
    Given(content="d"),
    Said(forms=["e"], start=5, end=6),
)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("ab", (1, 2, 2)),  # the first turn once more
        ("abc\n", (2, 4, 4)),  # behind it, with its stop string
        ("abc", (2, 4, 3)),
        ("abc\nx", (2, 4, 4)),
        ("abc\nd", (3, 5, 5)),  # the second turn once more
        ("abc\ndef", (4, 6, 6)),  # from the row's end
        ("a", None),
        ("xab", None),
    ],
)
def test_a_text_goes_on_from_the_latest_turn_that_it_holds(given, place):
    found = find_place([TEXT], given, None)
    assert (found and (found.num_pieces, found.keep, found.used)) == place


def test_a_turn_that_is_drawn_at_present_is_no_part_of_a_history():
    drawing = thread(Given(content="ab"), Said(forms=(), start=2, end=2))
    found = find_place([drawing], "abc", None)
    assert found is None
    again = find_place([drawing], "ab", None)
    assert again is not None and not again.is_end


def test_other_tools_are_another_prompt():
    assert find_place([TEXT], "abc\nx", [{"type": "function"}]) is None


def test_of_two_rows_the_longer_one_goes_on():
    short = thread(Given(content="ab"), Said(forms=["c\n"], start=2, end=3))
    found = find_place([short, TEXT, short], "abc\ndex", None)
    assert found is not None and found.thread is TEXT


def call(name, arguments):
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("said", "sent", "same"),
    [
        ({"content": " 4\n"}, {"content": "4"}, True),
        ({"content": "<think>x</think>4"}, {"content": "4"}, True),
        ({"content": "4"}, {"content": "5"}, False),
        ({"content": "4"}, {"content": "4", "role": "user"}, False),
        ({"content": "", "tool_calls": [call("f", {"a": 1})]}, {"content": ""}, False),
        (
            {"content": "", "tool_calls": [call("f", {"a": 1})]},
            {"content": "", "tool_calls": [call("f", {"a": 1})]},
            True,
        ),
        (
            {"content": "", "tool_calls": [call("f", {"a": 1})]},
            {"content": "", "tool_calls": [call("f", {"a": 2})]},
            False,
        ),
    ],
)
def test_a_turn_is_known_by_its_words_and_calls(said, sent, same):
    assert is_same_turn({"role": "assistant", **said}, {"role": "assistant", **sent}) is same
