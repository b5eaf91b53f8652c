"""What an engine answers trains, or is refused with a reason; nothing else for long ends it."""

import math

import pytest

from workers.data.requests import Sample
from workers.engines.vllm.answers import AnswerCheck, UnusableAnswerError, fault_of

VOCAB = 64


def sample(**changes):
    values = {
        "tokens": [5, 63, 2],
        "logprobs": [-0.5, 0.0, -7.0],
        "weight_versions": [3, 3, 4],
        "finish_reason": "stop",
        "text": "1",
    }
    return Sample(**{**values, **changes})


def test_a_response_is_an_answer():
    assert fault_of(sample(), vocab_size=VOCAB) is None
    aborted = sample(tokens=[], logprobs=[], weight_versions=[], finish_reason="abort")
    assert fault_of(aborted, vocab_size=VOCAB) is None


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"tokens": [], "logprobs": [], "weight_versions": []}, "empty response"),
        ({"logprobs": [-0.5, -0.1]}, "another number of log-probs than of tokens"),
        ({"logprobs": []}, "another number of log-probs than of tokens"),
        ({"weight_versions": [3]}, "another number of weight versions than of tokens"),
        ({"logprobs": [-0.5, math.nan, -1.0]}, "non-finite log-prob"),
        ({"logprobs": [-0.5, -math.inf, -1.0]}, "non-finite log-prob"),
        ({"logprobs": [-0.5, 0.01, -1.0]}, "positive log-prob"),
        ({"tokens": [5, 64, 2]}, "token id beyond the vocabulary"),
        ({"tokens": [5, -1, 2]}, "token id beyond the vocabulary"),
    ],
)
def test_garbage_is_named(changes, fault):
    assert fault_of(sample(**changes), vocab_size=VOCAB) == fault
    with pytest.raises(UnusableAnswerError, match=f"^{fault}$"):
        AnswerCheck("engine 0").accept(sample(**changes), vocab_size=VOCAB)


def test_an_engine_that_gives_nothing_else_is_given_up():
    answers = AnswerCheck("engine 7", max_in_a_row=3)
    garbage = sample(logprobs=[math.nan] * 3)

    def judge(one):
        with pytest.raises(UnusableAnswerError):
            answers.accept(one, vocab_size=VOCAB)

    for one in (garbage, garbage):
        judge(one)
    answers.accept(sample(), vocab_size=VOCAB)  # a usable one in between
    for one in (garbage, garbage):
        judge(one)
    answers.check()
    judge(garbage)
    with pytest.raises(RuntimeError, match="engine 7 gave 3 unusable .* non-finite log-prob; look"):
        answers.check()
