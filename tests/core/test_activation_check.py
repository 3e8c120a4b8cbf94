"""``Activation.check`` finds every kind of mistake in a record, and says where; ``repr`` says which record it is."""

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from manual_mlp import MLP, Activation, activations

VARIANTS = [
    *map(activations.get, activations.names()),
    activations.leaky_relu(0.2),
    activations.leaky_relu(-0.2),
    activations.elu(0.5),
    activations.celu(0.5),
    activations.softplus(2.0, 5.0),
    activations.hardtanh(-2.0, 0.5),
    activations.sin(30.0),
]
tanh, relu, gelu, elu = (activations.get(name) for name in ("tanh", "relu", "gelu", "elu"))


@pytest.mark.parametrize("activation", VARIANTS, ids=repr)
def test_every_known_activation_passes_on_the_grid_and_at_far_places_and_kinks(activation: Activation) -> None:
    assert activation.check() is activation
    activation.check(
        torch.tensor([[-1e4, -88.0, -3.0, -2.0, -1.0], [0.0, 0.5, 1.0, 3.0, 6.0], [1e-6, 20, 30, 88, 1e4]])
    )


def test_a_record_of_ones_own_passes_and_a_kink_takes_any_slope_between() -> None:
    Activation(f=lambda z: z**3, df=lambda z: 3 * z**2, d2f=lambda z: 6 * z).check()
    for slope_at_0 in (0.0, 0.3, 0.45, 0.5, 0.55, 1.0):
        step = replace(
            relu, df=lambda z, s=slope_at_0: (z > 0).to(z.dtype).masked_fill(z == 0, s), df_y=None, d2f_y=None
        )
        bare = replace(step, kernel=None)
        bare.check([-1.0, 0.0, 1.0])
    for outside in (-0.1, 1.1):
        step = replace(bare, df=lambda z, s=outside: (z > 0).to(z.dtype).masked_fill(z == 0, s))
        with pytest.raises(
            ValueError, match=r"^expected df of .* at z = 0 to be 0\.5, .*; it differs at 1 of 3 points$"
        ):
            step.check([-1.0, 0.0, 1.0])


def test_a_kink_in_the_middle_of_its_jump_passes() -> None:
    Activation(torch.abs, torch.sign, torch.zeros_like).check()


def test_points_are_taken_as_they_are_given() -> None:
    wrong = Activation(torch.sin, lambda z: torch.cos(z).masked_fill(z == 0.1, 77), lambda z: -torch.sin(z))
    with pytest.raises(ValueError, match=r"at z = 0\.1 "):
        wrong.check([-1, 0.1, 1])
    with pytest.raises(ValueError, match=r"expected real points z, got torch\.complex64"):
        wrong.check(torch.tensor([1j]))


def test_a_kernel_has_to_take_in_what_comes_back() -> None:
    cubic = Activation(lambda z: z**3, lambda z: 3 * z**2, lambda z: 6 * z, kernel=lambda dy, z: 0.75 * 3 * z**2)
    with pytest.raises(ValueError, match=r"expected kernel of .* df times dy"):
        cubic.check()
    with pytest.raises(ValueError, match=r"expected kernel2 of .* to return three tensors, got tuple"):
        replace(cubic, kernel=None, kernel2=lambda dy, q, z: (dy, q)).check()


def overwrites(z: Tensor) -> Tensor:
    return z.mul_(2)


weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
MISTAKES: dict[str, tuple[Callable[[], Activation], str]] = {
    "another slope": (lambda: replace(gelu, df=torch.sigmoid), "df of .*, the central difference of f"),
    "the sign of the curvature": (
        lambda: replace(tanh, d2f=lambda z: -tanh.d2f(z)),
        "d2f .*, the central difference of df",
    ),
    "a digit of the slope": (
        lambda: replace(gelu, df=lambda z: gelu.df(z) + 1e-6 * z),
        "df of .*, the central difference",
    ),
    "a slope that is not a number": (lambda: replace(relu, df=lambda z: z / z), "df of .* at z = 0 .*got nan"),
    "a slope that one y does not tell": (
        lambda: Activation(
            *(torch.square, lambda z: 2 * z, lambda z: 0 * z + 2), lambda y: 2 * y.sqrt(), lambda y: 1 / y.sqrt()
        ),
        "df_y of .* at z = -8 to be -16, as df is of this z, got 16; it differs at 135 of 272 points",
    ),
    "the derivative of that by z": (lambda: replace(tanh, d2f_y=tanh.d2f), "d2f_y times df of .*, as d2f is of this z"),
    "a kernel of the other variable": (
        lambda: replace(tanh, kernel=lambda dy, y: dy * tanh.df(y)),
        r"kernel of .*, df times dy",
    ),
    "a kernel without what comes back": (lambda: replace(gelu, kernel=lambda dy, z: gelu.df(z)), "kernel of "),
    "a kernel that spoils z": (
        lambda: replace(gelu, kernel=lambda dy, z: z.copy_(dy * gelu.df(z))),
        "kernel of .* to leave its argument as it is",
    ),
    "the second kernel, first": (
        lambda: replace(gelu, kernel2=lambda dy, q, z: (q * gelu.df(z), q * gelu.df(z), q * dy * gelu.d2f(z))),
        "kernel2, result 1, of .*, df times dy",
    ),
    "the second kernel, second": (
        lambda: replace(gelu, kernel2=lambda dy, q, z: (dy * gelu.df(z), dy * gelu.df(z), q * dy * gelu.d2f(z))),
        "kernel2, result 2, of .*, df times q",
    ),
    "the second kernel, third": (
        lambda: replace(tanh, kernel2=lambda dy, q, y: (dy * tanh.df_y(y), q * tanh.df_y(y), q * dy * y)),
        "kernel2, result 3, of .*, d2f_y times dy times q",
    ),
    "a function of the row": (
        lambda: replace(tanh, f=lambda z: z.softmax(-1)),
        "f of .*, as it is where other entries stand beside it",
    ),
    "a function that is not everywhere": (
        lambda: Activation(torch.log, torch.reciprocal, lambda z: -(z**-2)),
        "f of .* to be 0, or any finite number, got nan",
    ),
    "a function that changes its input": (
        lambda: Activation(overwrites, lambda z: 0 * z + 2, torch.zeros_like),
        r"f of Activation\(f=overwrites\) to leave its argument as it is",
    ),
    "a learnt function": (
        lambda: Activation(lambda z: weight * z, lambda z: weight + 0 * z, torch.zeros_like),
        "f of .* without parameters that require grad",
    ),
    "another dtype": (
        lambda: replace(relu, df=lambda z: (z > 0) * 1.0),
        r"df of relu\(\) to return a tensor of torch.float64 of shape \(272,\), .* got torch.float32",
    ),
    "another shape": (lambda: replace(relu, d2f=lambda z: torch.zeros(1)), r"d2f of relu\(\) to return .* \(1,\)$"),
    "no tensor": (lambda: replace(relu, d2f=lambda z: 0.0), r"d2f of relu\(\) to return .* got float$"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_and_told(mistake: str) -> None:
    make, told = MISTAKES[mistake]
    with pytest.raises(ValueError, match=rf"^expected {told}"):
        make().check()


def test_the_error_tells_which_where_what_was_expected_and_what_came() -> None:
    cubic = Activation(f=lambda z: z**3, df=lambda z: -3 * z**2, d2f=lambda z: -6 * z, name="cubic")
    told = r"^expected df of cubic.. at z = 2 to be 12, the central .* of f, got -12; it differs at 2 of 3 points$"
    with pytest.raises(ValueError, match=told):
        cubic.check([0.0, 1.0, 2.0])


@pytest.mark.parametrize("z", [[], [0.0, float("nan")], [float("inf")]])
def test_no_points_and_points_that_are_none_are_refused(z: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^expected finite points z, and at least one, got"):
        relu.check(z)


@pytest.mark.parametrize(
    ("activation", "shown"),
    [
        (activations.gelu("tanh"), "gelu('tanh')"),
        (activations.get("gelu_tanh"), "gelu('tanh')"),
        (activations.relu(), "relu()"),
        (replace(tanh, name="mine"), "mine()"),
        (replace(tanh, name="", f=overwrites), "Activation(f=overwrites)"),
        (replace(tanh, name="", f=torch.atan), "Activation(f=atan)"),
        (replace(tanh, name="", f=nn.GELU()), "Activation(f=GELU)"),
        (replace(tanh, name="", f=functools.partial(torch.clamp, max=1)), "Activation(f=clamp)"),
        (replace(elu, name=""), f"Activation(f=<lambda at kinks.py:{elu.f.__code__.co_firstlineno}>)"),
    ],
    ids=repr,
)
def test_the_repr_says_which_activation_it_is_in_a_line(activation: Activation, shown: str) -> None:
    assert repr(activation) == shown
    assert str(MLP([3, 4, 2], activation).layers[0]) == (
        f"Dense(in_features=3, out_features=4, activation={shown}, bias=True)"
    )
