"""A file of Python as text that one place is changed of: line numbers and comments stay as they are."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

TAGS = re.compile(r"\([A-Z]\d(?:, [A-Z]\d)*\)")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the bytes from start to stop become others.

    Attributes:
        path: of the file, from the root of the tree.
        scope: the qualified name of the function or class that the line stands in, "" in none.
        what: the change in words.
    """

    path: str
    line: int
    scope: str
    what: str
    start: int
    stop: int
    text: str

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.stop :]

    def compiles(self, source: bytes) -> bool:
        try:
            compile(self.applied(source), self.path, "exec", dont_inherit=True)
        except SyntaxError:
            return False
        return True

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


class Source:
    """The tree and the text of one file."""

    def __init__(self, root: Path, path: str) -> None:
        self.path = path
        self.bytes = (root / path).read_bytes()
        self.tree = ast.parse(self.bytes)
        self.starts = [0]
        for line in self.bytes.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        """Say which bytes an expression or a statement stands in."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.expr | ast.stmt) -> str:
        start, stop = self.span(node)
        return self.bytes[start:stop].decode()

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """List what a node stands in, inmost first."""
        while node in self.parents:
            node = self.parents[node]
            yield node

    def change(self, node: ast.expr | ast.stmt, text: str) -> Mutant:
        return self.between(node, *self.span(node), text)

    def between(self, node: ast.expr | ast.stmt, start: int, stop: int, text: str) -> Mutant:
        """Change some bytes of a node; what is said of it are the words around."""
        of_node = self.span(node)
        before, after = self.bytes[of_node[0] : start].decode(), self.bytes[stop : of_node[1]].decode()
        what = " -> ".join(" ".join(words.split()) for words in (self.text(node), f"{before}{text}{after}"))
        return Mutant(self.path, node.lineno, self.scope_of(node.lineno), what, start, stop, text)

    def operator(self, node: ast.expr | ast.stmt, left: ast.expr, right: ast.expr, operator: str) -> Mutant:
        """Put another operator between two operands; a bracket that stands there too stays."""
        start, stop = self.span(left)[1], self.span(right)[0]
        old = self.bytes[start:stop].decode()
        return self.between(node, start, stop, old.replace(old.strip(" ()\n"), operator, 1))

    def without(self, node: ast.Call, word: ast.keyword) -> Mutant:
        """Drop a keyword argument, with the comma before it."""
        start, stop = self.span(word)
        before = self.bytes[:start].rstrip()
        return self.between(node, len(before) - 1 if before.endswith(b",") else start, stop, "")

    def swapped(self, node: ast.Call, first: ast.expr, second: ast.expr) -> Mutant:
        """Exchange two arguments that follow one another."""
        start, stop = self.span(first)[0], self.span(second)[1]
        comma = self.bytes[self.span(first)[1] : self.span(second)[0]].decode()
        return self.between(node, start, stop, f"{self.text(second)}{comma}{self.text(first)}")

    @cached_property
    def _scopes(self) -> list[tuple[int, int, str]]:
        """List first line, last line and qualified name of every function and class, inner ones last."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, Definition):
                names = [each.name for each in self.above(node) if isinstance(each, Definition)]
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                found.append((first, node.end_lineno or first, ".".join([*names[::-1], node.name])))
        return sorted(found, key=lambda scope: (scope[0], -scope[1]))

    def scope_of(self, line: int) -> str:
        return next((name for first, last, name in reversed(self._scopes) if first <= line <= last), "")

    def tagged_lines(self) -> list[int]:
        """List the lines that end in a comment with a tag."""
        tokens = tokenize.generate_tokens(io.StringIO(self.bytes.decode()).readline)
        comments = (token for token in tokens if token.type == tokenize.COMMENT and TAGS.search(token.string))
        return [token.start[0] for token in comments if token.line[: token.start[1]].strip()]


def sources(root: Path, package: str = "manual_mlp") -> list[Source]:
    """Read every file of the package."""
    return [Source(root, path.relative_to(root).as_posix()) for path in sorted((root / package).rglob("*.py"))]
