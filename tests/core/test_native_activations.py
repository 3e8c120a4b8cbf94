"""The table of activations in C++ against the records in float64: every value of half precision, many of float32."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from conditions import threads
from manual_mlp import Activation, activations, dense
from manual_mlp.activations import get
from manual_mlp.engines import native
from manual_mlp.formulas.layer import delta_of, second_of_delta

if native.doors is None:
    pytest.skip(f"native is off: {native.why()}", allow_module_level=True)

# Those whose f, f′ and f″ are vectors in C++; the others call torch's kernels.
VECTORS = (
    *map(get, ("relu", "gelu", "silu", "tanh", "sigmoid", "softplus", "sin")),
    activations.softplus(2.0, 5.0),
    activations.softplus(100.0),
    activations.sin(30.0),
)
OTHERS = (
    *(get(name) for name in activations.__all__ if name in activations.names() and get(name) not in VECTORS),
    activations.leaky_relu(0.2),
    activations.leaky_relu(-0.2),
    activations.elu(0.5),
    activations.celu(0.5),
    activations.hardtanh(-2.0, 0.5),
)
# Where a function changes its form.
KINKS = (0.0, 0.2, 0.5, 1.0, 2.0, 2.5, 3.0, 5.0, 6.0, 20.0, 88.0, 104.0)
STEPS = 64
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
Formula = Callable[[Activation, Tensor], Tensor]


def every_value(dtype: torch.dtype) -> Tensor:
    """List every value of half precision; of float32 those of a fine grid, around kinks, and at both ends."""
    if dtype.itemsize == 2:
        return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    kinks = torch.tensor(KINKS).view(torch.int32)
    around = (kinks[:, None] + torch.arange(-STEPS, STEPS)).clamp(min=0).flatten().to(torch.int32).view(dtype)
    powers = torch.ldexp(torch.ones(278, dtype=torch.float64), torch.arange(-149, 129)).to(dtype)
    ends = torch.tensor([0.0, math.inf, math.nan, 3.4028e38, 1.1754942e-38])
    some = torch.cat([around, powers, ends])
    return torch.cat([torch.linspace(-100, 100, 1 << 20), some, -some])


def number_of(activation: Activation) -> int:
    """Return the number that native knows an activation by."""
    if activation.native is None:
        dense(torch.ones(1, 1), torch.ones(1, 1), None, activation)
    assert activation.native is not None
    assert activation.native >= 0
    return activation.native


# What a layer keeps is z or y, and f′ and f″ (or f″/f′) are functions of that. Half precision is given as rows of 64.


def f(activation: Activation, z: Tensor) -> Tensor:
    y = torch.full_like(z, math.nan)
    native.doors.y_into(y, z, number_of(activation))
    return y


def second(k: int) -> Formula:
    def of(activation: Activation, kept: Tensor) -> Tensor:
        one = torch.ones_like(kept)
        found: Tensor = native.doors.second_of_delta(one, one.clone(), kept, number_of(activation))[k]
        return found

    return of


def plain_second(k: int) -> Formula:
    def of(activation: Activation, kept: Tensor) -> Tensor:
        found = second_of_delta(torch.ones_like(kept), torch.ones_like(kept), kept, activation, True)[k]
        assert found is not None
        return found

    return of


def plain_delta(activation: Activation, kept: Tensor) -> Tensor:
    found = delta_of(torch.ones_like(kept), kept, activation, True)
    assert found is not None
    return found


# Native's, plain's, and the record's in float64.
TABLE: dict[str, tuple[Formula, Formula, Formula]] = {
    "f": (f, lambda a, z: a.f(z), lambda a, z: a.f(z)),
    "df": (second(0), plain_delta, lambda a, kept: a.of_kept()[0](kept)),
    "df of q": (second(1), plain_second(1), lambda a, kept: a.of_kept()[0](kept)),
    "d2f": (second(2), plain_second(2), lambda a, kept: a.of_kept()[1](kept)),
}


def assert_as_exact(mine: Tensor, plain: Tensor, truth: Tensor, at: Tensor) -> None:
    """See that in every binade of the argument the error is at most twice plain's, beside what rounding takes."""
    limits = torch.finfo(mine.dtype)
    # What the dtype cannot hold is infinite in it; where plain overflows on the way, native may do the same.
    exact = truth.to(mine.dtype).double()
    lost = (plain.isnan() & mine.isnan()) | (plain.isinf() & (mine == plain))
    for is_it in (torch.isnan, torch.isinf):
        differ = (is_it(mine) != is_it(exact)) & ~lost
        assert not differ.any(), (at[differ][:5], mine[differ][:5])
    infinite = exact.isinf() & ~lost
    assert torch.equal(mine[infinite].sign().double(), exact[infinite].sign())
    known = exact.isfinite() & ~lost
    x, exact = at[known].double(), truth[known]
    binade = torch.where(x == 0, -2000, torch.frexp(x.abs()).exponent) + 5000 * (x < 0)
    _, group = binade.unique(return_inverse=True)

    def largest(t: Tensor) -> Tensor:
        return torch.zeros(int(group.max()) + 1, dtype=torch.float64).scatter_reduce(0, group, t.abs(), "amax")

    theirs = torch.where(plain[known].isfinite(), plain[known].double() - exact, 0.0)
    errors, allowed = largest(mine[known].double() - exact), 2 * largest(theirs)
    allowed += max(limits.eps, 1e-6) * largest(exact) + limits.tiny
    worse = errors > allowed
    assert not worse.any(), (x[worse[group]][:3], errors[worse], allowed[worse])


@pytest.mark.parametrize("what", TABLE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", VECTORS, ids=repr)
def test_a_formula_in_vectors_is_as_exact_as_the_record(activation: Activation, dtype: torch.dtype, what: str) -> None:
    mine, plain, truth = TABLE[what]
    x = every_value(dtype)
    rows = x[: len(x) // 64 * 64].view(-1, 64)
    assert_as_exact(*(of(activation, rows) for of in (mine, plain)), truth(activation, rows.double()), rows)


# f of every record, and its f′, through the layer whose weight is one.


def layer(activation: Activation, z: Tensor) -> Tensor:
    y = dense(z.view(-1, 1), torch.ones(1, 1, dtype=z.dtype), None, activation)
    return y.view_as(z)


def layer_slope(activation: Activation, z: Tensor) -> Tensor:
    leaf = z.clone().requires_grad_()
    y = layer(activation, leaf)
    assert "manual_mlp" in y.grad_fn.next_functions[0][0].name()
    return torch.autograd.grad(y, leaf, torch.ones_like(z))[0]


def plain_slope(activation: Activation, z: Tensor) -> Tensor:
    return plain_delta(activation, z if activation.df_y is None else activation.f(z))


LAYER: dict[str, tuple[Formula, Formula, Formula]] = {
    "f": (layer, lambda a, z: a.f(z), lambda a, z: a.f(z)),
    "df": (layer_slope, plain_slope, lambda a, z: a.df(z)),
}


@pytest.mark.parametrize("what", LAYER)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [*VECTORS, *OTHERS], ids=repr)
def test_a_layer_has_every_activation_as_exact_as_the_record(
    activation: Activation, dtype: torch.dtype, what: str
) -> None:
    mine, plain, truth = LAYER[what]
    # A product may round what is denormal to zero, and the few numbers behind the last vector are no NaN: torch's own
    # elu_backward() has one answer there and another in vectors.
    z = every_value(dtype)
    z = torch.cat([z[~(z.abs() < torch.finfo(dtype).tiny) | (z == 0)], z.new_ones(64)])
    # Each thread has a last vector of its own.
    with threads(1):
        assert_as_exact(*(of(activation, z) for of in (mine, plain)), truth(activation, z.double()), z)


@pytest.mark.parametrize("what", TABLE)
@pytest.mark.parametrize("activation", VECTORS, ids=repr)
def test_in_float64_a_formula_is_the_records(activation: Activation, what: str) -> None:
    mine, _, truth = TABLE[what]
    x = every_value(torch.float32).double()
    x = x[(x.abs() <= 1e4) | x.isnan()][None]
    exact = truth(activation, x)
    slack = 1e-13 if activation.params == (30.0,) else 1e-15
    torch.testing.assert_close(mine(activation, x), exact, rtol=1e-13, atol=slack * 900, equal_nan=True)


def test_every_activation_of_this_package_is_known_to_native() -> None:
    assert {get(name) for name in activations.__all__ if name in activations.names()} <= {*VECTORS, *OTHERS}
    numbers = [number_of(activation) for activation in (*VECTORS, *OTHERS)]
    assert len(set(numbers)) == len(numbers)


MISTAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "a relative error": lambda y: y * (1 + 8 * max(torch.finfo(y.dtype).eps, 1e-6)),
    "one value": lambda y: y.index_fill(0, (y - 2).abs().nan_to_num(9.0).argmin(), 2.25),
    "no NaN": lambda y: y.nan_to_num(0.0),
    "no infinity": lambda y: y.clamp(-10, 10),
    "a wrong sign at infinity": lambda y: torch.where(y.isinf(), -y, y),
    "NaN at infinity": lambda y: torch.where(y.isinf(), math.nan, y),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_judge_sees_a_mistake(dtype: torch.dtype, mistake: Callable[[Tensor], Tensor]) -> None:
    z = every_value(dtype)
    y = get("silu").f(z)
    y[z.isinf()] = z[z.isinf()]
    exact = y.double()
    assert_as_exact(y.clone(), y, exact, z)
    with pytest.raises(AssertionError):
        assert_as_exact(mistake(y), y, exact, z)
