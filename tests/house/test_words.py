"""Docstrings name what they describe: none opens with a question word.

Ruff's D401 has the other half of the rule: a function's docstring opens with an imperative verb.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("algorithms", "conf", "orchestrator", "workers")
QUESTION = re.compile(r"(what|who|whom|whose|how|where|whether|when|why|which)\b", re.IGNORECASE)
DESCRIBED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring: of the module, its classes and its functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DESCRIBED) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def questions(source: str) -> list[tuple[int, str]]:
    """Return the docstrings that open with a question word."""
    return [(line, text) for line, text in docstrings(source) if QUESTION.match(text)]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_docstring_opens_with_a_question_word(package: str):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in files
        for line, text in questions(path.read_text())
    ]
    assert found == [], f"{len(found)} docstrings; name the thing, or use an imperative verb"


def test_a_question_word_is_found_in_module_class_function_and_method():
    source = (
        '"""How it works."""\n'
        "class Queue:\n"
        '    """Whose turn it is."""\n'
        "    async def take(self):\n"
        '        """what waits."""\n'
        "def describe():\n"
        '    """Whatever is given is described: this word asks nothing."""\n'
    )
    assert questions(source) == [
        (1, "How it works."),
        (2, "Whose turn it is."),
        (4, "what waits."),
    ]
