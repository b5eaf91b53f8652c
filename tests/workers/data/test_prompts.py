"""Several sources are one set; a template of one's own, and the values that it asks for."""

import pytest

from workers.data.prompts import ChatTemplate, PromptEncoder, PromptSet
from workers.data.sources.source import PromptSource
from workers.models.tiny import build_tiny


def source(path, name, texts):
    path.write_text("".join(f'{{"prompt": "{text}", "ground_truth": "1"}}\n' for text in texts))
    return PromptSource(path, name=name, prompt_column="prompt", ground_truth_column="ground_truth")


@pytest.fixture
def mixed(tmp_path):
    (tmp_path / "b").mkdir()
    first = source(tmp_path / "train.jsonl", "sums", "abc")
    return PromptSet.of([first, source(tmp_path / "b" / "train.jsonl", "words", "xy")])


def test_rows_are_counted_on_from_source_to_source(mixed):
    assert len(mixed) == 5
    assert [mixed[row].uid for row in range(5)] == [
        "sums:0",
        "sums:1",
        "sums:2",
        "words:0",
        "words:1",
    ]
    assert [mixed[row].prompt for row in range(5)] == ["a", "b", "c", "x", "y"]
    assert [mixed.source_of(row) for row in range(5)] == [0, 0, 0, 1, 1]


def test_the_order_of_a_source_holds_its_rows_once(mixed):
    orders = [mixed.order(epoch=0, seed=3, shuffle=True, source=number) for number in (0, 1)]
    assert sorted(orders[0]) == [0, 1, 2]
    assert sorted(orders[1]) == [3, 4]
    assert mixed.order(epoch=0, seed=3, shuffle=False, source=1) == [3, 4]


def test_two_sources_of_one_name_are_refused(tmp_path):
    first = source(tmp_path / "a.jsonl", "sums", "a")
    with pytest.raises(ValueError, match="sums names several sources"):
        PromptSet.of([first, source(tmp_path / "b.jsonl", "sums", "b")])


def test_the_digest_depends_on_every_source(tmp_path, mixed):
    (tmp_path / "b" / "train.jsonl").write_text('{"prompt": "x", "ground_truth": "2"}\n')
    assert PromptSet.of([mixed.sources[0], mixed.sources[0]][:1]).digest != mixed.digest
    other = source(tmp_path / "c.jsonl", "words", "xz")
    assert PromptSet.of([mixed.sources[0], other]).digest != mixed.digest


def test_a_template_of_ones_own_takes_keywords():
    text = "{{ messages[0].content }}{% if enable_thinking %}123{% endif %}="
    model = build_tiny()
    chat = [{"role": "user", "content": "12"}]
    for thinking, expected in ((True, "12123="), (False, "12=")):
        template = ChatTemplate(text=text, keywords={"enable_thinking": thinking})
        encoder = PromptEncoder(model, max_prompt_tokens=64, template=template)
        tokens, fault = encoder.encode(chat)
        assert fault is None
        assert encoder.decode(tokens).replace(" ", "") == expected
