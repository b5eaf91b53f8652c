"""Find the part of an assistant's turn that a chat template's generation prompt opens itself.

A generation prompt ends with the header of the assistant's turn; some templates write more, such
as `<think>`, and the response then begins inside of it. Runs in rollout workers and in the driver.
Renders text only: the tokens of a prompt are made in `prompts.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Messages = list[dict[str, Any]]
#: (messages, True to end with the generation prompt) -> text; raises what a template raises.
Render = Callable[[Messages, bool], str]

CONTENT = "a stand-in for the response"  # no template's header holds these words
AFTER = {"role": "user", "content": "and then?"}


def prefill_of(render: Render, messages: Messages) -> str:
    r"""Return the text behind the assistant's header in the generation prompt of `messages`.

    The header is what the generation prompt has in common with a turn of an assistant in the
    history, because templates leave the thoughts out of turns that are past.

    Example: where "user: 2+3=" is rendered as "<|user|>2+3=", with its generation prompt as
    "<|user|>2+3=<|assistant|><think>\n", and a turn in the history as "<|assistant|>5", the result
    is "<think>\n". Where nothing is opened, the result is "".

    Args:
        render: the chat template.
        messages: a chat that the template takes.
    """
    opening = _behind(render(messages, False), render(messages, True))
    answered = [*messages, {"role": "assistant", "content": CONTENT}]
    turns = []
    for chat in ([*answered, AFTER], answered):
        try:
            turns.append(_behind(render(messages, False), render(chat, False)).split(CONTENT)[0])
        # Templates may refuse a chat that goes on; one of the two forms is enough.
        except Exception:
            continue
    shared = [_num_shared(opening, turn) for turn in turns]
    return opening[min(shared) :] if shared else ""


def _behind(start: str, whole: str) -> str:
    """Return what `whole` has behind the text that it shares with `start`."""
    return whole[_num_shared(start, whole) :]


def _num_shared(one: str, other: str) -> int:
    """Return the number of characters with which both texts begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
