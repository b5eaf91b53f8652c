"""What an environment writes becomes ids by the run's own template and its variables."""

import pytest

from workers.data.prompts import ChatTemplate, PromptEncoder
from workers.models.tiny import build_tiny
from workers.rollout.turn_texts import TurnTexts

TEMPLATE = (
    "{% for message in messages %}{{ mark }}{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)
HISTORY = [{"role": "user", "content": "1"}]
NEW = [{"role": "user", "content": "2"}]


@pytest.mark.parametrize("mark", ["+", "-"])
def test_later_turns_are_rendered_with_the_variables_of_the_first(mark):
    template = ChatTemplate(text=TEMPLATE, keywords={"mark": mark})
    encoder = PromptEncoder(build_tiny(), 64, template)
    texts = TurnTexts(encoder)
    prompt, fault = encoder.encode(HISTORY)
    assert (encoder.decode(prompt).replace(" ", ""), fault) == (f"{mark}1=", None)
    sampled = encoder.continuation("9")
    added, _ = texts.extension(HISTORY, HISTORY, NEW, sampled=sampled, tools=None)
    assert encoder.decode(added).replace(" ", "") == f"{mark}2="
