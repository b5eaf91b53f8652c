"""A template is checked before a run, and rendered without a guess."""

from __future__ import annotations

import jinja2
import pytest

from workers.reward.scorers.models.templates import ALONE, TOGETHER, check_template, template_of


def test_names_are_checked_before_and_values_when_it_is_rendered() -> None:
    check_template("{% for s in samples %}{{ s.response }}{% endfor %}{{ prompt }}", TOGETHER)
    with pytest.raises(ValueError, match="prompt asks for samples; a template may use columns"):
        check_template("{{ samples }}", ALONE)
    assert template_of("{{ columns.level }}").render(columns={"level": 3}) == "3"
    with pytest.raises(jinja2.UndefinedError):
        template_of("{{ columns.level }}").render(columns={})
