"""Read the Jinja templates of prompts for judges.

Templates are the user's own configuration. The driver checks them, scoring processes render them.
"""

from __future__ import annotations

import functools
from typing import Any

#: Names that a template may use: of one response, and of all siblings of a prompt.
ALONE = frozenset(
    {"prompt", "response", "ground_truth", "columns", "messages", "lowest", "highest"}
)
TOGETHER = (ALONE - {"response"}) | {"samples"}


@functools.cache
def template_of(text: str) -> Any:
    """Return the compiled template; a name without a value is an error when it is rendered."""
    import jinja2

    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(text)


def check_template(text: str, known: frozenset[str]) -> None:
    """Check that a template can be read and uses only known names.

    Raises:
        ValueError: it can't, or it uses others.
    """
    import jinja2
    import jinja2.meta

    try:
        tree = jinja2.Environment().parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"prompt is no Jinja template: {error}") from error
    unknown = jinja2.meta.find_undeclared_variables(tree) - known
    if unknown:
        raise ValueError(
            f"prompt asks for {', '.join(sorted(unknown))}; a template may use "
            f"{', '.join(sorted(known))}"
        )
