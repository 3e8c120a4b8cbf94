"""Formulas computed by torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.explain.blocks import Refused, Values
from manual_mlp.explain.expressions import Definition, Tree

Look = Callable[[str], Tensor]

_NONE: Mapping[str, Definition] = {}
NUDGE = 2.0**-17  # ε of a central difference: it loses least to rounding and to curvature together


def _directions(at: Tensor, draw: Tensor) -> Tensor:
    """Make numbers from −1 to 1 with one decimal that look random, the same for the same shape and draw."""
    r, c = at.shape
    n = torch.arange(r * c, dtype=torch.float64).view(r, c)
    return (10 * torch.cos((n + 1) * (draw + 2) * 1.7)).round() / 10


def _hottest(at: Tensor) -> Tensor:
    return F.one_hot(at.argmax(1), at.shape[1]).to(at.dtype)


def _basis(like: Tensor, n: Tensor, k: Tensor) -> Tensor:
    made = torch.zeros_like(like)
    _at(made, n, k)[:] = 1
    return made


def _at(a: Tensor, n: Tensor, k: Tensor) -> Tensor:
    return _row(_row(a, n).mT, k)


def _row(a: Tensor, n: Tensor) -> Tensor:
    if not 0 <= _as_far(n) < len(a):
        raise IndexError("there is no such entry")
    return a[_as_far(n)][None]


def _head(a: Tensor, n: Tensor, k: Tensor) -> Tensor:
    if _as_far(n) > a.shape[0] or _as_far(k) > a.shape[1]:
        raise IndexError("there is no such entry")
    return a[: _as_far(n), : _as_far(k)]


def _as_far(draw: Tensor) -> int:
    return int(draw.reshape(()).item())


# An entry of the result is of the same entries of the arguments.
_ENTRYWISE: dict[str, Callable[..., Any]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": lambda *factors: math.prod(factors[1:], start=factors[0]),
    "/": torch.div,
    "**": torch.pow,
    "<": torch.lt,
    "<=": torch.le,
    ">": torch.gt,
    ">=": torch.ge,
    "==": torch.eq,
    "neg": torch.neg,
    "exp": torch.exp,
    "ln": torch.log,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "cos": torch.cos,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "sigmoid": torch.sigmoid,
    "softplus": lambda a: torch.logaddexp(a, torch.zeros_like(a)),
    "Phi": lambda a: torch.erfc(-a / math.sqrt(2)) / 2,
    "phi": lambda a: torch.exp(-a * a / 2) / math.sqrt(2 * math.pi),
    "max": torch.maximum,
    "min": torch.minimum,
}
_OPERATIONS: dict[str, Callable[..., Any]] = {
    **_ENTRYWISE,
    "@": torch.mm,
    "T": lambda a: a.mT,
    "sum": lambda a: a.sum().view(1, 1),
    "sum0": lambda a: a.sum(0, keepdim=True),
    "sum1": lambda a: a.sum(1, keepdim=True),
    "softmax": lambda a: a.softmax(1),
    "lse": lambda a: a.logsumexp(1, keepdim=True),
    "hottest": _hottest,
    "choice": lambda a: a.argmax(1, keepdim=True).to(a.dtype),
    "eye": lambda a: torch.eye(a.shape[1], dtype=a.dtype),
    "diag": lambda a: torch.diag_embed(a[0]),
    "kron": torch.kron,
    "row": _row,
    "col": lambda a, k: _row(a.mT, k).mT,
    "at": _at,
    "basis": _basis,
    "head": _head,
    "pad": lambda a, value: F.pad(a, (0, 1), value=float(value.item())),
    "flat": lambda a: a.reshape(1, -1),
    "rows": lambda a: torch.full((1, 1), float(a.shape[0]), dtype=a.dtype),
    "cols": lambda a: torch.full((1, 1), float(a.shape[1]), dtype=a.dtype),
    "moves": _directions,
    "inv": torch.linalg.inv,
}


def evaluate(tree: Tree, look: Look, functions: Mapping[str, Definition] = _NONE) -> Tensor:
    """Compute a tree.

    Args:
        look: finds the value of a name.
        functions: what is called beside the operations of every formula: f and f′, for example.

    Raises:
        RuntimeError, IndexError: the sides do not fit, in torch's words.
    """
    if isinstance(tree, str):
        return look(tree)
    if not isinstance(tree, list):
        return torch.full((1, 1), float(tree), dtype=torch.float64)
    name, *parts = tree
    if name == "call":
        found: Tensor = parts[0](*(evaluate(part, look, functions) for part in parts[1:]))
        return found if found.dim() == 2 else found.view(1, -1)
    if name == "if":
        chosen = evaluate(parts[0], look, functions) != 0
        sides = zip(parts[1:], (chosen, ~chosen), strict=True)
        yes, no = (evaluate(part, _only(side, part, look), functions) for part, side in sides)
        return torch.where(chosen, yes, no)
    values = [evaluate(part, look, functions) for part in parts]
    if name in functions:
        arguments, body = functions[name]
        return evaluate(body, dict(zip(arguments, values, strict=True)).__getitem__, functions)
    made: Tensor = _OPERATIONS[name](*values)
    return made.to(torch.float64) if made.dtype is torch.bool else made


def _only(chosen: Tensor, tree: Tree, look: Look) -> Look:
    """Look up what an entrywise tree is of, without slopes where an ``if`` does not choose it: 0 · ∞ is no slope."""
    if not _is_entrywise(tree):
        return look

    def found(name: str) -> Tensor:
        value = look(name)
        return torch.where(chosen, value, value.detach()) if value.shape == chosen.shape else value

    return found


def _is_entrywise(tree: Tree) -> bool:
    return not isinstance(tree, list) or (tree[0] in (*_ENTRYWISE, "if") and all(map(_is_entrywise, tree[1:])))


class Scope:
    """Hold named values and definitions, and compute what is asked for, once.

    Args:
        given: the inputs, all (R, C).
        definitions: a tree for every other name.
        functions: f and f′, J and its slope.
    """

    def __init__(
        self, given: Mapping[str, Tensor], definitions: Mapping[str, Tree], functions: Mapping[str, Definition]
    ) -> None:
        self.given, self.definitions, self.functions = given, definitions, functions
        self._found: dict[str, Values] = {}

    def __getitem__(self, name: str) -> Values:
        if name in self.given:
            return self.given[name]
        if name not in self._found:
            self._found[name] = self.compute(self.definitions[name])
        return self._found[name]

    def compute(self, tree: Tree) -> Values:
        """Compute a tree, or say why it cannot be computed; what was refused before stays refused."""
        try:
            return evaluate(tree, self._look, self.functions)
        except _Unknown as error:
            return error.reason
        except (RuntimeError, IndexError) as error:
            return Refused(str(error).splitlines()[0])

    def _look(self, name: str) -> Tensor:
        found = self[name]
        if isinstance(found, Refused):
            raise _Unknown(found)
        return found

    def at(self, **values: Tensor) -> Scope:
        """Return the scope in which some names, inputs or not, have other values."""
        return Scope({**self.given, **values}, self.definitions, self.functions)

    def told(self, definitions: Mapping[str, Tree]) -> Scope:
        """Return the scope in which some names are defined otherwise."""
        return Scope(self.given, {**self.definitions, **definitions}, self.functions)

    def slopes(self, tree: Tree, name: str) -> Values:
        """Return the derivatives of a tree's entries by all entries of a named value, by autograd.

        Returns:
            In the shape of the value if the tree is one number, else (entries of the tree, entries of the value).
        """
        value = self[name]
        if isinstance(value, Refused):
            return value
        with torch.inference_mode(False), torch.enable_grad():
            leaf = value.detach().clone().requires_grad_()
            made = self.at(**{name: leaf}).compute(tree)
            if isinstance(made, Refused):
                return made
            if leaf.numel() == 1 < made.numel():
                return _by_one(made, leaf)
            rows = [_gradient(entry, leaf) for entry in made.reshape(-1)]
        return rows[0] if len(rows) == 1 else torch.stack([row.reshape(-1) for row in rows])

    def differences(self, tree: Tree, name: str) -> Values:
        """Return the same by central differences."""
        value = self[name]
        if isinstance(value, Refused):
            return value
        columns = []
        for entry in range(value.numel()):
            nudge = torch.zeros_like(value)
            nudge.view(-1)[entry] = NUDGE
            up, down = (self.at(**{name: value + side * nudge}).compute(tree) for side in (1, -1))
            if isinstance(up, Refused) or isinstance(down, Refused):
                return up if isinstance(up, Refused) else down
            columns.append((up - down).reshape(-1) / (2 * NUDGE))
        table = torch.stack(columns, 1)
        return table.view(value.shape) if len(table) == 1 else table


def _gradient(entry: Tensor, leaf: Tensor, again: bool = False) -> Tensor:
    if not entry.requires_grad:
        return torch.zeros_like(leaf)
    (found,) = torch.autograd.grad(entry, leaf, retain_graph=True, create_graph=again, allow_unused=True)
    return torch.zeros_like(leaf) if found is None else found


def _by_one(made: Tensor, leaf: Tensor) -> Tensor:
    """Return the slopes of many entries by one number, all at once: those of a weighted sum's slope, by the weights."""
    weights = torch.zeros_like(made, requires_grad=True)
    return _gradient(_gradient((made * weights).sum(), leaf, again=True), weights).reshape(-1, 1)


class _Unknown(Exception):
    """A value was refused, for a reason."""

    def __init__(self, reason: Refused) -> None:
        self.reason = reason
