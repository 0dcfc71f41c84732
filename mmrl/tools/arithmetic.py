"""Arithmetic without `eval`: a syntax tree of a few kinds of nodes, and numbers of bounded size."""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from mmrl.tools.schema import ArgumentError
from mmrl.tools.tool import Tool, tool

MOST_CHARACTERS = 1_000
MOST_BITS = 10_000  # of a whole number
MOST_FACTORIAL = 1_000

Number = int | float


def calculate(expression: str) -> str:
    """The value of an arithmetic expression, such as 2 * (3 + 4) ** 2 or sqrt(2) / pi.

    Numbers, + - * / // % ** ^ and brackets, pi, e, tau, and the functions abs, acos, asin, atan,
    ceil, comb, cos, degrees, exp, factorial, floor, gcd, lcm, log, log10, log2, max, min, radians,
    round, sin, sqrt, tan.
    """
    if len(expression) > MOST_CHARACTERS:
        raise ArgumentError(f"an expression has {MOST_CHARACTERS} characters at most")
    try:
        tree = ast.parse(expression.strip().replace("^", "**"), mode="eval")
        return str(_value(tree.body))
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ArgumentError(f"{expression!r} is no expression: {error}") from None
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ArgumentError(f"{expression!r} has no value: {error}") from None


def calculator() -> Tool:
    """The tool `calculator`."""
    return tool(calculate, name="calculator", timeout_seconds=5.0)


def _value(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        return _SIGNS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left), _value(node.right)
        return _bounded(_OPERATORS[type(node.op)](left, right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _FUNCTIONS.get(node.func.id)
        if function is None:
            raise ValueError(f"there is no function {node.func.id}")
        return _bounded(function(*map(_value, node.args)))
    raise ValueError(f"{ast.unparse(node)!r} is not arithmetic")


def _bounded(value: Any) -> Number:
    if isinstance(value, int):
        if value.bit_length() > MOST_BITS:
            raise ValueError("a number is too large")
    elif not isinstance(value, float) or not math.isfinite(value):
        raise ValueError(f"{value} is no finite real number")
    return value


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int):
        if exponent < 0:
            return float(base) ** exponent
        if base.bit_length() * exponent > MOST_BITS and base not in (-1, 0, 1):
            raise ValueError("a number is too large")
    return base**exponent


def _factorial(number: Number) -> int:
    if not isinstance(number, int) or not 0 <= number <= MOST_FACTORIAL:
        raise ValueError(f"factorial takes a whole number from 0 to {MOST_FACTORIAL}")
    return math.factorial(number)


def _combinations(n: Number, k: Number) -> int:
    if not isinstance(n, int) or not isinstance(k, int) or not 0 <= n <= 10 * MOST_FACTORIAL:
        raise ValueError(f"comb takes whole numbers from 0 to {10 * MOST_FACTORIAL}")
    return math.comb(n, k)


_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
_SIGNS: dict[type, Callable] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_OF_MATH = (
    *("acos", "asin", "atan", "ceil", "cos", "degrees", "exp", "floor", "gcd", "lcm"),
    *("log", "log10", "log2", "radians", "sin", "sqrt", "tan"),
)
_FUNCTIONS: dict[str, Callable] = {
    "abs": abs,
    "max": max,
    "min": min,
    "round": round,
    "factorial": _factorial,
    "comb": _combinations,
    **{name: getattr(math, name) for name in _OF_MATH},
}
