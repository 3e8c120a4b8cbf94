"""What a step of the explanation shows: its matrices, tables, words and checks."""

from dataclasses import replace

import torch

from manual_mlp import Activation, losses
from manual_mlp.explain import Formulas
from manual_mlp.explain.blocks import Matrix, Numbers, OfF, Table, Text
from manual_mlp.explain.terminal import of_f

RIGHT = Formulas()
LOSSES = losses.flags()
ANALYTIC = (
    "identity",
    "sigmoid",
    "tanh",
    "lecun_tanh",
    "sin",
    "silu",
)  # and torch's operations of them take complex numbers
CUBIC = Activation(f=lambda z: z**3, df=lambda z: 3 * z**2, d2f=lambda z: 6 * z, name="cubic")


# The steps that a formula slightly wrong turns red.
RED = {
    "cost_gradient": {2, 3, 4, 5, 6, 8, 10, 12},
    "delta": {3, 4, 5, 6, 8, 10, 12},
    "weight": {4, 5, 6, 7, 8, 10, 12},
    "stored_weight": {5},
    "bias": {5, 8, 10, 12},
    "input": {8, 10},
    "softmax": {9},
}


def wrong(field):
    right = getattr(RIGHT, field)
    return replace(RIGHT, **{field: lambda *arguments: 1.001 * right(*arguments)})


def matrices(step):
    parts = [part for block in step.shown if isinstance(block, Numbers) for part in block.parts]
    return [part for part in parts if isinstance(part, Matrix)]


def shown(step, name):
    """The first matrix whose name starts so."""
    return next(matrix.values for matrix in matrices(step) if matrix.name.startswith(name))


def tables(step):
    return [block for block in step.shown if isinstance(block, Table)]


def words(step):
    blocks = [Text(of_f(b.name, b.text)) if isinstance(b, OfF) else b for b in step.shown]
    return " ".join(block.text for block in blocks if isinstance(block, Text))


def value(text):
    return float(text.replace("−", "-").replace(",", ""))


def red(steps):
    return {step.number for step in steps if step.failed}


def same(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=torch.float64), rtol=0, atol=tolerance)
