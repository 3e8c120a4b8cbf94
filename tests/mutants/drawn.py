"""Mutants of any line, drawn by chance: a comparison, a condition, a constant, an argument, a statement, an error."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from random import Random

from mutants.source import Mutant, Source

# How many of twelve are drawn from where; the first pattern that fits a path holds.
SHARES = {
    "manual_mlp/training/*": 1,
    "manual_mlp/explain/*": 1,
    "manual_mlp/activations/*": 1,
    "manual_mlp/*": 9,
}
COMPARED: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "+",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "+",
    ast.BitOr: "&",
    ast.BitAnd: "|",
}
ERRORS = {"ValueError": "TypeError", "TypeError": "ValueError", "RuntimeError": "ValueError"}
# What is not drawn, by path and function, and why.
LEFT_OUT = {
    "manual_mlp/sweep/tiling.py tiling_for*": "a model of time: whatever rows it chooses, what is computed is the same",
}


def draw(sources: list[Source], count: int, seed: int) -> list[Mutant]:
    """Draw so many mutants, spread over rooms, then over kinds, then over lines."""
    random, read = Random(seed), {source.path: source for source in sources}
    sites: dict[str, dict[str, list[Mutant]]] = {pattern: defaultdict(list) for pattern in SHARES}
    for source in sources:
        tagged = {*source.tagged_lines()}
        room = next(pattern for pattern in SHARES if fnmatch(source.path, pattern))
        for kind, mutant in _of(source):
            left_out = any(fnmatch(f"{mutant.path} {mutant.scope}", pattern) for pattern in LEFT_OUT)
            if mutant.line not in tagged and not left_out:
                sites[room][kind].append(mutant)
    drawn: list[Mutant] = []
    while len(drawn) < count and any(sites.values()):
        rooms = [pattern for pattern in SHARES if sites[pattern]]
        (room,) = random.choices(rooms, [SHARES[pattern] for pattern in rooms])
        kind = random.choice(sorted(sites[room]))
        mutants = sites[room][kind]
        mutant = mutants.pop(random.randrange(len(mutants)))
        if not mutants:
            del sites[room][kind]
        if mutant.compiles(read[mutant.path].bytes):
            drawn.append(mutant)
    return drawn


def _of(source: Source) -> Iterator[tuple[str, Mutant]]:
    """List every change of a file, with its kind."""
    skipped = {id(inner) for node in ast.walk(source.tree) for part in _unread(node) for inner in ast.walk(part)}
    for node in ast.walk(source.tree):
        if id(node) not in skipped:
            yield from _changes(source, node)


def _unread(node: ast.AST) -> Iterator[ast.AST]:
    """List the parts of a node that no run reads, or whose wording is free: annotations, messages, mypy's asserts."""
    match node:
        case ast.arg(annotation=ast.AST() as annotation) | ast.AnnAssign(annotation=annotation):
            yield annotation
        case ast.FunctionDef():
            yield from [node.returns] if node.returns else []
            yield from node.decorator_list
            if any(
                "abstractmethod" in ast.unparse(each) or "overload" in ast.unparse(each) for each in node.decorator_list
            ):
                yield from node.body
        case ast.Raise(exc=ast.Call() as call):
            yield call
        case ast.JoinedStr() | ast.Assert() | ast.Import() | ast.ImportFrom():
            yield node
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            yield node
        case ast.Call(func=ast.Name(id="cast"), args=[kind, _]):
            yield kind
        case ast.Call(func=ast.Name(id="zip"), keywords=words):
            yield from words
        case ast.Module(body=body):
            # What another type is called, which annotations read.
            yield from (each for each in body if isinstance(each, ast.Assign) and _is_type(each.value))
        case ast.Assign(targets=[ast.Name(id=name)]) if name in ("__all__", "__slots__") or "Callable" in ast.unparse(
            node
        ):
            yield node


def _is_type(value: ast.expr) -> bool:
    return isinstance(value, ast.Subscript) or (isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr))


def _changes(source: Source, node: ast.AST) -> Iterator[tuple[str, Mutant]]:
    match node:
        case ast.Compare(left=left, ops=[operator], comparators=[right]) if type(operator) in COMPARED:
            yield "comparison", source.operator(node, left, right, COMPARED[type(operator)])
        case ast.BoolOp(values=[first, second, *_]):
            other = "or" if isinstance(node.op, ast.And) else "and"
            yield "condition", source.operator(node, first, second, other)
            yield "condition", source.between(node, source.span(first)[0], source.span(second)[0], "")
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "condition", source.change(node, f"({source.text(operand)})")
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield "constant", source.change(node, f"({source.text(operand)})")
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield "condition", source.change(test, f"(not ({source.text(test)}))")
        case ast.BinOp(left=left, right=right) if type(node.op) in ARITHMETIC:
            yield "arithmetic", source.operator(node, left, right, ARITHMETIC[type(node.op)])
        case ast.Constant(value=bool(value)):
            yield "constant", source.change(node, str(not value))
        case ast.Constant(value=int(value)):
            yield "constant", source.change(node, "0" if value == 1 else str(value + 1))
        case ast.Constant(value=float(value)):
            yield "constant", source.change(node, repr(2 * value if value else 1.0))
        case ast.Call(func=ast.Name(id="max" | "min")):
            pass
        case ast.Call(args=[*_, first, second]) if not any(isinstance(each, ast.Starred) for each in (first, second)):
            if source.text(first) != source.text(second):
                yield "arguments", source.swapped(node, first, second)
        case ast.Raise(exc=ast.Call(func=ast.Name(id=name) as error)) if name in ERRORS:
            yield "error", source.change(error, ERRORS[name])
            yield "statement", source.change(node, "pass")
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Delete():
            yield "statement", source.change(node, "pass")
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "statement", source.change(node, "pass")
    if isinstance(node, ast.Call):
        for word in node.keywords:
            if word.arg not in (None, "strict"):
                yield "arguments", source.without(node, word)
