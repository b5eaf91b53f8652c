"""Read the tests of a program from a row, and judge what came out of the sandbox.

Runs in a scoring process. The two scripts here run inside the sandbox, before the program of a
response: neither holds an expected value.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from typing import Any

PROGRAM, TESTS = "/run/program.py", "/run/tests.json"
RUN = f"""
sys.argv = ["program.py"]
text = open("{PROGRAM}").read()
exec(compile(text, "program.py", "exec"), {{"__name__": "__main__"}})
"""
# Results go to the real output, which the program's own prints do not reach.
EVALUATE = f"""
results = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
tests = json.loads(open("{TESTS}").read())
names = {{"__name__": "program"}}
exec(compile(open("{PROGRAM}").read(), "program.py", "exec"), names)
exec(compile(tests["setup"], "setup.py", "exec"), names)
for expression in tests["expressions"]:
    try:
        value = repr(eval(expression, names))
    except Exception:
        value = None
    print(json.dumps(value), file=results, flush=True)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputOutput:
    r"""Test of a program that reads standard input and writes standard output.

    Example: InputOutput(given="2 3\n", expected="5\n")
    """

    given: str
    expected: str

    def accepts(self, output: str) -> bool:
        """Return True if both have the same lines, white space at their ends apart."""
        return _lines(output) == _lines(self.expected)


@dataclass(frozen=True, kw_only=True, slots=True)
class Expressions:
    r"""Tests of a program's functions: expressions, and the value that each must have.

    Example, of the text "import math\nassert area(1) == 3": Expressions(
        setup="import math", expressions=("area(1)",), expected=(3,))
    """

    setup: str
    expressions: tuple[str, ...]
    expected: tuple[Any, ...]

    def first(self, count: int) -> Expressions:
        """Return the first `count` tests."""
        return Expressions(
            setup=self.setup,
            expressions=self.expressions[:count],
            expected=self.expected[:count],
        )

    def as_json(self) -> str:
        """Return the part that enters the sandbox."""
        return json.dumps({"setup": self.setup, "expressions": self.expressions})

    def num_right(self, output: str) -> int:
        """Count the values that are as expected; each line of the output is one, as JSON text."""
        lines = output.splitlines()
        if len(lines) != len(self.expected):
            return 0
        return sum(_equals(line, wanted) for line, wanted in zip(lines, self.expected, strict=True))


def _equals(line: str, wanted: Any) -> bool:
    try:
        text = json.loads(line)
        value = ast.literal_eval(text) if isinstance(text, str) else None
        return isinstance(text, str) and bool(value == wanted)
    # Whatever a program prints in place of a value is no right value.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def read_tests(text: str) -> list[InputOutput] | Expressions:
    r"""Read the tests of a row, in the forms of published sets.

    | form | example |
    |---|---|
    | APPS, TACO | {"inputs": ["2 3\n"], "outputs": ["5\n"]}, with "fn_name" for calls |
    | a list | [{"input": "2 3\n", "output": "5\n"}] |
    | assertions | ["assert add(2, 3) == 5"], or Python text of such lines after a setup |

    Raises:
        ValueError: it is none of these, or has no test.
    """
    try:
        found = json.loads(text)
    except ValueError:
        return _assertions(text)
    try:
        if isinstance(found, dict) and found.get("fn_name"):
            return _calls(found["fn_name"], found["inputs"], found["outputs"])
        if isinstance(found, dict):
            pairs = list(zip(found["inputs"], found["outputs"], strict=True))
        elif found and all(isinstance(each, str) for each in found):
            return _assertions("\n".join(found))
        else:
            pairs = [(each["input"], each["output"]) for each in found]
        tests = [InputOutput(given=_joined(a), expected=_joined(b)) for a, b in pairs]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no tests can be read from {text[:80]!r}: {error!r}") from error
    if not tests:
        raise ValueError(f"no test in {text[:80]!r}")
    return tests


def _calls(name: str, inputs: list[Any], outputs: list[Any]) -> Expressions:
    """Return calls of a function; APPS wraps a value into a list of one."""
    if not inputs or len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs need as many outputs, one at least: {len(outputs)}")
    return Expressions(
        setup=f"{name} = {name} if {name!r} in globals() else Solution().{name}",
        expressions=tuple(f"{name}({', '.join(map(repr, each))})" for each in inputs),
        expected=tuple(_either(each) for each in outputs),
    )


class _OneOf:
    """Value that equals any of several."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __eq__(self, other: object) -> bool:
        return any(value == other for value in self.values)

    __hash__ = None  # type: ignore[assignment]


def _either(value: Any) -> Any:
    return _OneOf(value, value[0]) if isinstance(value, list) and len(value) == 1 else value


def _assertions(text: str) -> Expressions:
    """Divide Python text into a setup and assertions: a literal on the right stays outside."""
    try:
        statements = ast.parse(text).body
    except SyntaxError as error:
        raise ValueError(f"the tests {text[:80]!r} are neither JSON nor Python: {error}") from error
    asserts = [each for each in statements if isinstance(each, ast.Assert)]
    setup = [ast.unparse(each) for each in statements if not isinstance(each, ast.Assert)]
    if not asserts:
        raise ValueError(f"the tests {text[:80]!r} hold no assert at their top level")
    pairs = [_sides(each.test) for each in asserts]
    return Expressions(
        setup="\n".join(setup),
        expressions=tuple(left for left, _ in pairs),
        expected=tuple(right for _, right in pairs),
    )


def _sides(test: ast.expr) -> tuple[str, Any]:
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        try:
            return ast.unparse(test.left), ast.literal_eval(test.comparators[0])
        except ValueError:  # no literal: the comparison is made inside
            pass
    return f"bool({ast.unparse(test)})", True


def _joined(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
