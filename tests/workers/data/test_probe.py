"""Which sequences weights are compared by: beginnings of prompts, and one as long as fits."""

import pytest

from workers.data.images.spans import ImageSpan
from workers.data.probe import LONG_TOKENS, SHORT_TOKENS, ProbeSequence, choose_probe


def chosen(encoded, **limits):
    return choose_probe([ProbeSequence(tokens=tokens) for tokens in encoded], **limits)


def lengths(encoded, **limits):
    return [len(one.tokens) for one in chosen(encoded, **limits)]


def test_short_beginnings_and_one_long_sequence_of_joined_prompts():
    probe = chosen([[1, 2, 3], [4, 5]], context=8, budget=100)
    assert [one.tokens for one in probe] == [[1, 2, 3], [4, 5], [1, 2, 3, 4, 5, 1, 2, 3]]


def test_neither_context_nor_budget_is_exceeded():
    long_prompt = list(range(5000))
    assert lengths([long_prompt], context=4000, budget=8192) == [SHORT_TOKENS, LONG_TOKENS]
    assert lengths([long_prompt], context=4000, budget=300) == [64, 236]
    assert lengths([long_prompt], context=31, budget=4096) == [31]


def test_prompts_that_cannot_be_compared_by_are_left_out():
    (only,) = chosen([[], [7], [1, 2]], context=2, budget=10)
    assert only.tokens == [1, 2]
    with pytest.raises(ValueError, match="no two tokens to compare weights by"):
        chosen([[], [7]], context=8, budget=10)


def shown(*images):
    """A prompt of 200 tokens with images at (offset, length)."""
    spans = tuple(
        ImageSpan(offset=offset, length=length, grid=(1, 2, 2 * length), digest=f"{offset}")
        for offset, length in images
    )
    files = tuple(span.digest.encode() for span in spans)
    return ProbeSequence(tokens=list(range(200)), images=spans, files=files)


def test_an_image_is_kept_whole_where_it_fits_and_else_left_out():
    first, second = choose_probe([shown((10, 100)), shown((10, 100))], context=4000, budget=200)
    assert (len(first.tokens), first.files) == (110, (b"10",))
    assert (len(second.tokens), second.images) == (10, ())


def test_a_probe_never_ends_inside_an_image():
    (begin,) = choose_probe([shown((5, 20), (60, 30))], context=4000, budget=100)
    assert (len(begin.tokens), begin.files) == (90, (b"5", b"60"))
    (begin,) = choose_probe([shown((5, 20), (60, 30))], context=80, budget=4000)
    assert (len(begin.tokens), begin.files) == (60, (b"5",))


def test_the_long_sequence_is_text_alone():
    probe = choose_probe([shown((5, 20)), ProbeSequence(tokens=[1, 2, 3])], context=90, budget=4000)
    assert probe[-1] == ProbeSequence(tokens=[1, 2, 3] * 30)
