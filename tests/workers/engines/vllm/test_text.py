"""The text of a response: special tokens by choice, the one that ended it never."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from workers.engines.vllm.engine import text_of

# Ids: 1 is "7", which is a special token; 2 is "<eos>"; 3 is a line break, no special token.
VOCABULARY = {"x": 0, "7": 1, "<eos>": 2, "\n": 3, "y": 4}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(VOCABULARY, unk_token="x")),
        eos_token="<eos>",
        extra_special_tokens=["7"],
    )


def output(tokens: list[int], reason: str, stop: Any = None) -> Any:
    return SimpleNamespace(token_ids=tokens, finish_reason=reason, stop_reason=stop)


@pytest.mark.parametrize(
    ("answer", "without", "kept"),
    [
        (output([0, 1, 2], "stop"), "x", "x7"),  # EOS: vLLM names no reason
        (output([0, 1, 3], "stop", 3), "x\n", "x7\n"),  # a stop token that is no special token
        (output([4, 1, 1], "stop", 1), "y", "y7"),  # a special token among stop_token_ids
        (output([4, 1], "stop", "7"), "y", "y7"),  # a text of `stop` that is a special token
        (output([4, 1], "length"), "y", "y7"),
        (output([], "abort"), "", ""),
    ],
    ids=["eos", "line break", "stop token", "stop text", "limit", "nothing"],
)
def test_special_tokens_are_kept_but_the_last(
    tokenizer: PreTrainedTokenizerFast, answer: Any, without: str, kept: str
) -> None:
    def words(text: str) -> str:
        return text.replace(" ", "")

    assert words(text_of(answer, tokenizer, keep_special=False)) == without
    assert words(text_of(answer, tokenizer, keep_special=True)) == kept


def test_without_a_tokenizer_there_is_no_text() -> None:
    assert text_of(output([0, 1], "stop"), None, keep_special=True) == ""
