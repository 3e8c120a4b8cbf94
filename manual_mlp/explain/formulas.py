"""The formulas that the explanation computes, as data, and eight usual mistakes in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from manual_mlp.activations import Activation
from manual_mlp.activations.registry import formulas_of, parameters_of
from manual_mlp.explain.evaluate import evaluate
from manual_mlp.explain.expressions import Definition, Tree, from_docstring, names_in, parse, substitute
from manual_mlp.losses import Criterion, by_flag

# Each derivative of the chain: the field of Formulas that makes it, and of what. T is Y*; Hr and dr are the row of H
# and of δ that is looked at, E and t what enters a softmax and the rows of right classes.
CHAIN = {
    "dY": ("cost_gradient", "Y", "T"),
    "delta": ("delta", "dY", "Z"),
    "dW": ("weight", "H", "delta"),
    "dWr": ("weight", "Hr", "dr"),
    "G": ("stored_weight", "H", "delta"),
    "dB": ("bias", "delta"),
    "dH": ("input", "delta", "W"),
    "gamma": ("delta", "dH", "Z1"),
    "dV": ("weight", "X", "gamma"),
    "dC": ("bias", "gamma"),
    "dX": ("input", "gamma", "V"),
    "dE": ("softmax", "E", "t"),
}

# Where a docstring's formula has to tell what a record does: as a matrix, so that no sum passes for an entry; far out
# too, and on no kink.
_POINTS = torch.cat([torch.linspace(-9.03, 9.07, 77), torch.linspace(-811.3, 809.2, 23)]).double().view(10, 10)


def cost(loss: str, y: Tensor, target: Tensor) -> Tensor:
    """Return J, summed over rows and outputs, by torch's own operations; y may be complex if the loss lets it.

    Shape:
        y, target: (N, D_out) -> ()
    """
    known = by_flag(loss)
    if known.cost is not None and y.is_complex():
        return known.cost(y, target)
    return Criterion(known, target, "sum", {}).torchs(y)  # which is finite far out too


def of_loss(loss: str) -> dict[str, Definition]:
    """Return J, its slope ∂J/∂Y and the shares of a loss as functions of Y and T."""
    known, names = by_flag(loss), ("Y", "T")
    if known.written is None:
        made: dict[str, Tree] = {
            "J": ["call", lambda y, t: cost(loss, y, t), *names],
            "slope": ["call", lambda y, t: known.make(y, t).values(y.clone(), slice(None), True)[1], *names],
            "shares": ["call", known.shares, "Y"],
        }
    else:
        made = dict(zip(("J", "slope", "shares"), map(parse, known.written), strict=True))
    made["diagonal"] = parse("-T * (1 - softmax(Y))") if known.of_classes else made["slope"]
    return {name: (("Y",) if name == "shares" else names, tree) for name, tree in made.items()}


def of_activation(f: Activation) -> dict[str, Definition]:
    """Return f and f′ as functions of z: by the formulas in the docstring, if the record computes the same."""
    told = formulas_of(f)
    made: dict[str, Definition] = {}
    for name, sign, own in (("f", "f", f.f), ("df", "f′", f.df)):
        try:
            tree = from_docstring(told[sign], told.get("where", ""), parameters_of(f))
            tree = tree if "z" in names_in(tree) else ["+", tree, ["*", 0, "z"]]  # a slope of 1 has an entry for each z
            found = evaluate(tree, {"z": _POINTS}.__getitem__)
            same = torch.allclose(found, own(_POINTS.clone()), rtol=1e-9, atol=1e-12, equal_nan=True)
        except (LookupError, ValueError, RuntimeError, TypeError):
            same = False
        made[name] = (("z",), tree if same else ["call", own, "z"])
    return made


def in_words(f: Activation) -> str:
    """Write f as its docstring has it, formulas between backticks; empty where it has none."""
    found = formulas_of(f)
    if "f" not in found:
        return ""
    where: list[str] = []
    for letter in reversed(re.split(r", (?=\w = )", found.get("where", ""))):
        if letter and re.search(rf"\b{letter[0]}\b", " ".join((found["f"], *where))):  # of f, and not of f′ alone
            where.insert(0, letter)
    where += [f"{name} = {value}" for name, value in parameters_of(f).items()]
    told = ", ".join(f"`{part}`" for part in where)
    return f"`f(z) = {found['f']}`" + (f", where {told}" if told else "")


@dataclass(frozen=True)
class Function:
    """Hold a formula as text, and compute it where it is called.

    Args:
        text: in Python's syntax, as ``manual_mlp.explain.expressions`` reads it.
        arguments: their names; one that is called ``f`` is an activation, and ``loss`` is a loss's flag.
    """

    text: str
    arguments: tuple[str, ...]

    @cached_property
    def tree(self) -> Tree:
        """The formula as data."""
        return parse(self.text)

    def __call__(self, *values: Any) -> Tensor:
        at = dict(zip(self.arguments, values, strict=True))
        functions = (of_activation(at["f"]) if "f" in at else {}) | (of_loss(at["loss"]) if "loss" in at else {})
        return evaluate(self.tree, at.__getitem__, functions)

    def on(self, *names: str) -> Tree:
        """Return the formula of other names, for its arguments that are matrices."""
        own = (name for name in self.arguments if name not in ("f", "loss"))
        return substitute(self.tree, dict(zip(own, names, strict=True)))


@dataclass(frozen=True)
class Formulas:
    """Hold the formulas of one explanation; a mistake replaces some of them.

    Each is a ``Function``, which a page can compute too, or any other function of the same arguments.

    Example::

        from manual_mlp.explain import draw_network, explain

        halved = Formulas(weight=lambda H, delta: H.T @ delta / 2)
        assert any(step.failed for step in explain(draw_network(), halved))
    """

    cost_gradient: Callable[[str, Tensor, Tensor], Tensor] = Function("slope(Y, T)", ("loss", "Y", "T"))
    delta: Callable[[Tensor, Tensor, Activation], Tensor] = Function("dY * df(Z)", ("dY", "Z", "f"))
    weight: Callable[[Tensor, Tensor], Tensor] = Function("H.T @ delta", ("H", "delta"))
    stored_weight: Callable[[Tensor, Tensor], Tensor] = Function("delta.T @ H", ("H", "delta"))
    bias: Callable[[Tensor], Tensor] = Function("sum0(delta)", ("delta",))
    input: Callable[[Tensor, Tensor], Tensor] = Function("delta @ W.T", ("delta", "W"))
    softmax: Callable[[Tensor, Tensor], Tensor] = Function("softmax(E) - t", ("E", "t"))

    def chain(self, loss: str, f: Activation, suffix: str = "") -> dict[str, Tree]:
        """Return a tree for each derivative, which are called by their names with a suffix."""
        extra: dict[str, tuple[Any, ...]] = {"cost_gradient": (loss,), "delta": (f,)}
        made: dict[str, Tree] = {f"dr{suffix}": ["row", f"delta{suffix}", "r"]}
        for name, (field, *of) in CHAIN.items():
            names, formula = [one + suffix if one in (*CHAIN, "dr") else one for one in of], getattr(self, field)
            if isinstance(formula, Function):
                made[name + suffix] = formula.on(*names)
            else:
                made[name + suffix] = ["call", _bound(formula, field, extra), *names]
        return made

    @property
    def changed(self) -> tuple[str, ...]:
        """List the fields that are not as they should be."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) != field.default)


def _bound(formula: Callable[..., Tensor], field: str, extra: Mapping[str, tuple[Any, ...]]) -> Callable[..., Tensor]:
    before, after = (extra.get(field, ()) if field == one else () for one in ("cost_gradient", "delta"))
    return lambda *values: formula(*before, *values, *after)


RIGHT = Formulas()


@dataclass(frozen=True)
class Mistake:
    """One usual mistake.

    Attributes:
        name: for the command line and for a report.
        wrong: the formula as it was written.
        right: as it should be.
        why: how one comes to write it, and what is the matter with it.
        of: the field of Formulas whose numbers it changes first.
        formulas: those of an explanation that makes it.

    Example::

        from manual_mlp.explain import MISTAKES

        assert MISTAKES["slope-forgotten"].wrong == "δ = ∂J/∂Y"
    """

    name: str
    wrong: str
    right: str
    why: str
    of: str
    formulas: Formulas


def _mistake(name: str, wrong: str, right: str, why: str, **formulas: str) -> Mistake:
    made = {field: Function(text, getattr(RIGHT, field).arguments) for field, text in formulas.items()}
    return Mistake(name, wrong, right, why, next(iter(formulas)), replace(RIGHT, **made))


MISTAKES = {
    mistake.name: mistake
    for mistake in (
        _mistake(
            "transpose-dropped",
            "∂J/∂W = H δ",
            "∂J/∂W = Hᵀ δ",
            "H stands in the formula, so H is written down. But the sum runs over the rows of H, and only a transpose "
            "puts those where a matrix product sums.",
            weight="H @ delta",
        ),
        _mistake(
            "product-for-hadamard",
            "δ = ∂J/∂Y f′(Z)",
            "δ = ∂J/∂Y ⊙ f′(Z)",
            "The chain rule says “times”, and for matrices that looks like a matrix product. The matrix it means is "
            "the diagonal one of step 3.",
            delta="dY @ df(Z)",
        ),
        _mistake(
            "slope-forgotten",
            "δ = ∂J/∂Y",
            "δ = ∂J/∂Y ⊙ f′(Z)",
            "The error at the output is taken for the error before f. It is so only where f is the identity.",
            delta="dY",
        ),
        _mistake(
            "slope-at-output",
            "δ = ∂J/∂Y ⊙ f′(Y)",
            "δ = ∂J/∂Y ⊙ f′(Z)",
            "Y is at hand and Z is not. A slope can sometimes be had from Y, as `Y(1 − Y)` for the sigmoid, but that "
            "is another function of Y than f′.",
            delta="dY * df(f(Z))",
        ),
        _mistake(
            "mean-for-sum",
            "∂J/∂W = Hᵀ δ / N",
            "∂J/∂W = Hᵀ δ",
            "J adds up the rows. Its derivative does so too. Dividing by N, the number of rows, is right only "
            "where J was.",
            weight="H.T @ delta / rows(H)",
            stored_weight="delta.T @ H / rows(H)",
            bias="sum0(delta) / rows(delta)",
        ),
        _mistake(
            "bias-not-summed",
            "∂J/∂B = δ",
            "∂J/∂B = Σₙ δₙ",
            "For one row it is δ, as the textbook says. With a batch the one bias serves all rows, and every row has "
            "its say.",
            bias="delta",
        ),
        _mistake(
            "convention-swapped",
            "weight.grad = Hᵀ δ",
            "weight.grad = δᵀ H",
            "The textbook's formula is handed to PyTorch, which stores the weight the other way round.",
            stored_weight="H.T @ delta",
        ),
        _mistake(
            "softmax-as-diagonal",
            "δ = ∂J/∂p ⊙ p ⊙ (1 − p)",
            "δ = p − t",
            "Step 3 worked for an entrywise f, so its diagonal is used once more. But every pᵢ depends on all that "
            "enters the softmax.",
            softmax="-t * (1 - softmax(E))",
            cost_gradient="diagonal(Y, T)",
        ),
    )
}
