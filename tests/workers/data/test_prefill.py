"""The part of the assistant's turn that a chat template opens, for templates as published."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from workers.data.prefill import prefill_of
from workers.data.prompts import PromptEncoder
from workers.models.tiny import build_tiny

CHAT = [{"role": "user", "content": "2+3="}]

# As DeepSeek-R1-Distill: thoughts are cut from turns of the history, and opened in the next one.
R1 = """{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}\
<|Assistant|>{{ m.content.split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"""
# As Qwen3-Thinking: the last turn has an empty block of thoughts, earlier ones have none.
QWEN = """{% for m in messages %}<|im_start|>{{ m.role }}\n\
{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}\
{{ m.content }}<|im_end|>\n{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"""
PLAIN = QWEN.replace("<think>\n{% endif", "{% endif")
# As Qwen3 with enable_thinking=false.
CLOSED = QWEN.replace("<think>\n{% endif", "<think>\n\n</think>\n\n{% endif")
# Refuses a second question; the header of the assistant has no end of its own.
ONE = """{{ messages[0].content }}{% if messages | length > 2 %}{{ raise() }}{% endif %}\
{% if messages | length == 2 %} A: {{ messages[1].content }}{% endif %}\
{% if add_generation_prompt %} A: <reasoning>{% endif %}"""
# Refuses every answer, so that nothing tells the header from what is opened.
NONE = (
    "{{ messages[0].content }}{{ raise() if messages[1] }}{{ 'A: <x>' if add_generation_prompt }}"
)


@pytest.mark.parametrize(
    ("template", "opened"),
    [
        (R1, "<think>\n"),
        (QWEN, "<think>\n"),
        (PLAIN, ""),
        (CLOSED, "<think>\n\n</think>\n\n"),
        (ONE, "<reasoning>"),
        (NONE, ""),
    ],
    ids=["r1", "qwen", "plain", "closed", "one", "none"],
)
def test_what_stands_behind_the_header_is_opened(template: str, opened: str) -> None:
    program = jinja2.Environment(undefined=jinja2.ChainableUndefined).from_string(template)

    def render(messages: list[dict[str, str]], opens: bool) -> str:
        return program.render(messages=messages, add_generation_prompt=opens)

    assert prefill_of(render, CHAT) == opened


def test_the_encoder_asks_the_models_own_template(tmp_path: Path) -> None:
    folder = Path(build_tiny(tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(R1)
    encoder = PromptEncoder(folder, max_prompt_tokens=64)
    assert encoder.prefill(CHAT) == "<think>\n"
    assert encoder.prefill("2+3=") == ""
