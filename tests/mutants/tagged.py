"""Mutants of the lines that compute a formula: each value a little wrong, and the formula another."""

import ast
from collections.abc import Iterator

from mutants.source import Mutant, Source

ARITHMETIC: dict[type[ast.operator], str] = {ast.Add: "-", ast.Sub: "+", ast.Mult: "+", ast.Div: "*"}
METHODS = {
    "sum": "mean",
    "mean": "sum",
    "square": "abs",
    "sigmoid_": "tanh_",
    "exp_": "abs_",
    "neg": "abs",
    "add": "sub",
    "add_": "sub_",
    "sub": "add",
    "sub_": "add_",
    "mul": "div",
    "mul_": "div_",
    "div": "mul",
    "div_": "mul_",
}
PRODUCTS = ("mm", "linear", "product", "outer", "matmul")
INTO = ("total", "out")  # what a function writes to, where it is given
MEMORY = ("out", "dtype", "reduce", "keepdim")


def of_tagged_lines(source: Source) -> dict[int, list[Mutant]]:
    """Make the mutants of every tagged line: the value of each branch scaled, and one other operation."""
    found = {}
    for line in source.tagged_lines():
        values = [value for part in _parts(source, line) for value in _values(part)]
        mutants = [_scaled(source, value, "1.01 * ") for value in values[:3]]
        mutants += list(_others(source, line, values))[:1]
        # The line is where its tag stands, and its mutants are told by it.
        moved = (Mutant(each.path, line, *list(vars(each).values())[2:]) for each in mutants)
        found[line] = [each for each in moved if each.compiles(source.bytes)]
    return found


def _parts(source: Source, line: int) -> list[ast.expr | ast.stmt]:
    """List the outmost expressions that stand wholly on a line within a longer statement, else its statement."""
    around = [n for n in ast.walk(source.tree) if isinstance(n, ast.stmt) and n.lineno <= line <= (n.end_lineno or 0)]
    statement = max(around, key=lambda n: (n.lineno, -(n.end_lineno or 0), n.col_offset))
    if statement.lineno == statement.end_lineno:
        return [statement]
    on_line = [
        node
        for node in ast.walk(statement)
        if isinstance(node, ast.expr) and node.lineno == line == node.end_lineno and not _is_plain(node)
    ]
    return [node for node in on_line if not {*source.above(node)} & {*on_line}] or [statement]


def _is_plain(node: ast.expr) -> bool:
    return isinstance(node, (ast.Name, ast.Constant, ast.Starred)) or not isinstance(
        getattr(node, "ctx", ast.Load()), ast.Load
    )


def _values(part: ast.expr | ast.stmt) -> list[ast.expr]:
    """List the expressions whose values a statement makes: those of each branch, and of each member of a tuple."""
    match part:
        case ast.Assign(targets=[ast.Tuple()], value=ast.Call(args=[first, *_])):
            return _leaves(first) or [first]  # scaled, one argument changes what comes out in all
        case ast.Expr(value=ast.Call(args=[*_, last])):
            return _leaves(last) or [last]  # what is written to stands before, or is named
        case ast.Expr(value=ast.Call()):
            return []
        case ast.If(test=value) | ast.While(test=value) | ast.For(iter=value) | ast.Expr(value=value):
            return _leaves(value)
        case ast.Assign(value=value) | ast.AugAssign(value=value) | ast.AnnAssign(value=ast.expr() as value):
            return _leaves(value) or [value]
        case ast.Return(value=ast.expr() as value):
            return _leaves(value) or [value]
    return _leaves(part) if isinstance(part, ast.expr) else []


def _leaves(value: ast.expr) -> list[ast.expr]:
    match value:
        case ast.IfExp(body=body, orelse=orelse):
            return _leaves(body) + _leaves(orelse)
        case ast.Tuple(elts=members) | ast.List(elts=members):
            return [leaf for member in members for leaf in _leaves(member)]
        case (
            ast.Lambda(body=inner) | ast.GeneratorExp(elt=inner) | ast.ListComp(elt=inner) | ast.NamedExpr(value=inner)
        ):
            return _leaves(inner)
        case ast.Name() | ast.Constant():
            return []
        case ast.Call() if _name(value).startswith("zeros"):
            return []
        case ast.Call(args=[*_, last]) if _name(value).endswith("_") or _name(value).startswith("add_"):
            return _leaves(last) or [last]  # what is changed in place need not be what is returned
        case ast.Call(args=[first, *others]) if any(getattr(each, "id", "") in INTO for each in others):
            return [first]
    return [value]


def _scaled(source: Source, value: ast.expr, factor: str) -> Mutant:
    text = source.text(value)
    if not isinstance(value, ast.Call):
        return source.change(value, f"({factor}({text}))")
    # What a call finds may be None, and is to be wrong where it is a tensor.
    return source.change(value, f"(lambda v: v if v is None else {factor}v)({text})")


def _others(source: Source, line: int, values: list[ast.expr]) -> Iterator[Mutant]:
    """Draw other operations than a tagged line's, the likeliest mistakes first."""
    for part in _parts(source, line):
        if isinstance(part, ast.AugAssign) and type(part.op) in ARITHMETIC:
            yield source.operator(part, part.target, part.value, ARITHMETIC[type(part.op)] + "=")
        nodes = [node for node in ast.walk(part) if isinstance(node, ast.Call)]
        for node in nodes:
            if len(terms := [each for each in node.args if isinstance(each, ast.Tuple)]) > 1:
                # One term of a sum less.
                start = source.span(node.args[node.args.index(terms[-1]) - 1])[1]
                yield source.between(node, start, source.span(terms[-1])[1], "")
        for node in nodes:
            if _name(node).endswith(PRODUCTS):
                for word in node.keywords:
                    if word.arg not in MEMORY and isinstance(word.value, (ast.Name, ast.Attribute)):
                        yield source.without(node, word)
        for value in [*values, *(node for node in ast.walk(part) if isinstance(node, ast.expr))]:
            if isinstance(value, ast.BinOp) and type(value.op) in ARITHMETIC and not _is_count(value):
                yield source.operator(value, value.left, value.right, ARITHMETIC[type(value.op)])
            if isinstance(value, ast.BinOp) and isinstance(value.op, ast.MatMult):
                yield source.change(value.right, f"({source.text(value.right)}).flip(0)")
        for node in nodes:
            if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                stop = source.span(node.func)[1]
                yield source.between(node, stop - len(node.func.attr), stop, METHODS[node.func.attr])
            if _name(node).endswith(PRODUCTS) and len(node.args) > 1:
                # The rows of an operand in another order.
                yield source.change(node.args[1], f"({source.text(node.args[1])}).flip(0)")
    for value in values:
        yield _scaled(source, value, "-")


def _is_count(node: ast.BinOp) -> bool:
    return any(isinstance(each, ast.Constant) and isinstance(each.value, int) for each in (node.left, node.right))


def _name(node: ast.Call) -> str:
    return str(getattr(node.func, "attr", getattr(node.func, "id", "")))
