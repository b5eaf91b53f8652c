"""Compute an arithmetic expression: the calculator of `environment=tools`.

Runs in a tool process. Evaluates numbers and operators only: no names, no calls, no attributes.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

Number = int | float
MAX_CHARS = 500
MAX_BITS = 4096  # of an integer; a power beyond it could take a process's whole memory
BINARY: Mapping[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
UNARY: Mapping[type[ast.unaryop], Callable[[Number], Number]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str:
    """Compute an arithmetic expression of numbers, + - * / // % ** and parentheses.

    Args:
        expression: for instance (3 + 4) * 2.

    Returns:
        The value; whole numbers without a decimal point.

    Raises:
        ValueError: it is no such expression, or its value has no finite number of at most
            `MAX_BITS` bits.
        ZeroDivisionError: it divides by zero.
    """
    if len(expression) > MAX_CHARS:
        raise ValueError(f"an expression has at most {MAX_CHARS} characters")
    try:
        tree = ast.parse(expression.strip().replace("^", "**"), mode="eval")
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"{expression!r} is no arithmetic expression") from error
    value = _value(tree.body)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return str(value)


def _value(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant) and isinstance(number := node.value, (int, float)):
        return _bounded(number)
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _bounded(_power(left, right))
        if type(node.op) in BINARY:
            return _bounded(BINARY[type(node.op)](left, right))
    raise ValueError(f"{ast.unparse(node)!r} is not made of numbers, + - * / // % ** and ()")


def _power(base: Number, exponent: Number) -> Number:
    bits = math.log2(abs(base)) * exponent if base else 0.0
    if bits > MAX_BITS:
        raise ValueError(f"{base} ** {exponent} is too large")
    value = base**exponent
    if isinstance(value, complex):
        raise ValueError(f"{base} ** {exponent} is no real number")
    return value


def _bounded(value: Number) -> Number:
    too_large = (
        value.bit_length() > MAX_BITS if isinstance(value, int) else not math.isfinite(value)
    )
    if too_large:
        raise ValueError("the value is too large")
    return value
