"""Formulas as data: read from Python's syntax or from an activation's docstring, and computed by torch or by a page.

A tree is a name, a number, or a list of an operation's name and its arguments. All values are matrices: a number is
1×1, a row is 1×D.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

Tree: TypeAlias = Any  # str | float | list[Any]: mypy has no recursive alias that json takes
Definition: TypeAlias = tuple[tuple[str, ...], Tree]  # of a function: its arguments and its body

_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.MatMult: "@", ast.Pow: "**"}
_COMPARED = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "=="}
# What a docstring writes, and Python.
_WRITTEN = {"·": "*", "−": "-", "²": "**2", "³": "**3", "≤": "<=", "≥": ">=", "σ(": "sigmoid(", "√(": "sqrt("}
_WRITTEN |= {"Φ(": "Phi(", "φ(": "phi(", ", else": " else"}


def parse(text: str) -> Tree:
    """Read a formula in Python's syntax.

    Raises:
        ValueError: the text is no formula.
    """
    try:
        return _tree(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"expected a formula, got {text!r}: {error}") from None


def _tree(node: ast.expr) -> Tree:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=bool() | int() | float() as value):
            return value
        case ast.BinOp(left=left, op=sign, right=right):
            return _stable([_BINARY[type(sign)], _tree(left), _tree(right)])
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return ["neg", _tree(operand)]
        case ast.Attribute(value=value, attr="T"):
            return ["T", _tree(value)]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _stable([name, *map(_tree, arguments)])
        case ast.IfExp(test=test, body=yes, orelse=no):
            return ["if", _tree(test), _tree(yes), _tree(no)]
        case ast.Compare(left=first, ops=signs, comparators=others):
            sides = [_tree(first), *map(_tree, others)]
            pairs = [[_COMPARED[type(s)], a, b] for s, a, b in zip(signs, sides, sides[1:], strict=False)]
            return pairs[0] if len(pairs) == 1 else ["*", *pairs]
    raise TypeError(type(node).__name__)


def _stable(tree: Tree) -> Tree:
    """Write ln(1 + x), exp(x) − 1, ln(1 + exp(x)), ln(σ(x)) and 1/(1 + exp(−x)) as functions that lose no digits."""
    match tree:
        case ["ln", ["+", 1, ["exp", x]]]:
            return ["softplus", x]
        case ["ln", ["+", 1, x]]:
            return ["log1p", x]
        case ["ln", ["sigmoid", x]]:
            return ["neg", ["softplus", ["neg", x]]]
        case ["-", ["exp", x], 1]:
            return ["expm1", x]
        case ["/", 1, ["+", 1, ["exp", ["neg", x]]]]:
            return ["sigmoid", x]
    return tree


def from_docstring(formula: str, where: str, given: Mapping[str, Any]) -> Tree:
    """Read a formula of z as an activation's docstring has it, such as ``z·min(max(z + 3, 0), 6)/6``.

    Args:
        where: what its letters stand for, as in ``a = 1.7159, t = tanh(z)``.
        given: the numbers of the factory, by name.

    Raises:
        ValueError: the text is no formula, or holds letters that nobody tells.
    """
    letters: dict[str, Tree] = {"π": math.pi, **given}
    for part in re.split(r", (?=\w = )", where):
        name, sign, text = part.partition(" = ")
        if sign:
            letters[name] = substitute(_read(text), letters)
    tree = substitute(_read(formula), letters)
    unknown = names_in(tree) - {"z"}
    if unknown:
        raise ValueError(f"expected a formula of z, got {formula!r} with {', '.join(sorted(unknown))}")
    return tree


def _read(text: str) -> Tree:
    for sign, python in _WRITTEN.items():
        text = text.replace(sign, python)
    return parse(re.sub(r"\|(\w+)\|", r"abs(\1)", text))


def substitute(tree: Tree, values: Mapping[str, Tree]) -> Tree:
    """Put trees in the place of names."""
    if isinstance(tree, str):
        return values.get(tree, tree)
    if isinstance(tree, list):
        return [tree[0], *(substitute(part, values) for part in tree[1:])]
    return tree


def names_in(tree: Tree) -> set[str]:
    """List the names that a tree looks up."""
    if isinstance(tree, str):
        return {tree}
    return set().union(*(names_in(part) for part in tree[1:])) if isinstance(tree, list) else set()


def is_data(tree: Tree) -> bool:
    """Tell whether a tree holds no function of Python, and numbers that JSON has, so that a page can compute it."""
    if isinstance(tree, list):
        return all(map(is_data, tree))
    return isinstance(tree, str) or (not callable(tree) and math.isfinite(tree))
