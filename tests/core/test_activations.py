"""Each activation's f, f′ and f″, and how activations are found."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import manual_mlp
from manual_mlp import Activation, activations
from manual_mlp.activations import get, to_module
from manual_mlp.activations.entrywise import slope
from manual_mlp.formulas.layer import delta_of, second_of_delta
from truths import added

# Smooth places, kinks, saturation and far beyond.
POINTS = [
    -1e4,
    -88.0,
    -30.0,
    -6.0,
    -3.0,
    -1.0,
    -0.3,
    0.0,
    1e-6,
    0.3,
    0.5,
    1.0,
    2.0,
    3.0,
    5.9,
    6.0,
    20.0,
    30.0,
    88.0,
    1e4,
]

# The functions as torch has them, and with parameters that are not the defaults.
TORCH = {
    activations.identity(): lambda z: z,
    activations.relu(): F.relu,
    activations.leaky_relu(): F.leaky_relu,
    activations.leaky_relu(0.2): lambda z: F.leaky_relu(z, 0.2),
    activations.leaky_relu(-0.2): lambda z: F.leaky_relu(z, -0.2),
    activations.elu(): F.elu,
    activations.elu(0.5): lambda z: F.elu(z, 0.5),
    activations.celu(): F.celu,
    activations.celu(0.5): lambda z: F.celu(z, 0.5),
    activations.selu(): F.selu,
    activations.sigmoid(): torch.sigmoid,
    activations.logsigmoid(): F.logsigmoid,
    activations.tanh(): torch.tanh,
    activations.softplus(): F.softplus,
    activations.softplus(2.0, 5.0): lambda z: F.softplus(z, 2.0, 5.0),
    activations.softsign(): F.softsign,
    activations.hardtanh(): F.hardtanh,
    activations.hardtanh(-2.0, 0.5): lambda z: F.hardtanh(z, -2.0, 0.5),
    activations.relu6(): F.relu6,
    activations.hardsigmoid(): F.hardsigmoid,
    activations.hardswish(): F.hardswish,
    activations.gelu(): F.gelu,
    activations.gelu("tanh"): lambda z: F.gelu(z, approximate="tanh"),
    activations.silu(): F.silu,
    activations.mish(): F.mish,
    activations.squared_relu(): lambda z: F.relu(z).square(),
    activations.sin(): torch.sin,
    activations.sin(30.0): lambda z: torch.sin(30.0 * z),
    activations.lecun_tanh(): lambda z: 1.7159 * torch.tanh(2 / 3 * z),
    activations.softcap(): lambda z: 30.0 * torch.tanh(z / 30.0),
    activations.softcap(0.7): lambda z: 0.7 * torch.tanh(z / 0.7),
}
OF_TORCH = frozenset(TORCH)
NAMED = {activation.name: f for activation, f in TORCH.items()} | {"gelu_tanh": TORCH[activations.gelu("tanh")]}
TORCH |= {get(name): f for name, f in added(NAMED).items()}
every_activation = pytest.mark.parametrize("activation", TORCH, ids=repr)
# torch holds 1/6 in float32 here, whatever the dtype.
FIRST_ORDER = {"hardsigmoid": 1e-8}


def points(device: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(POINTS, dtype=dtype, device=device, requires_grad=True)


def test_every_known_name_is_compared_with_torch() -> None:
    # Those of this package stand there by hand; a name that is added in a test is compared with the text it gives.
    assert set(map(get, set(activations.names()) & set(activations.__all__))) <= OF_TORCH
    assert set(map(get, activations.names())) <= set(TORCH)


@every_activation
def test_f_and_its_slope_are_torchs_at_kinks_and_in_saturation(device: str, activation: Activation) -> None:
    z = points(device)
    y = TORCH[activation](z)
    (df,) = torch.autograd.grad(y.sum(), z, retain_graph=True)
    tolerance = FIRST_ORDER.get(activation.name, 1e-14)
    assert torch.equal(activation.f(z), y)
    torch.testing.assert_close(activation.df(z), df, rtol=1e-12, atol=tolerance)
    if activation.df_y is not None:
        torch.testing.assert_close(activation.df_y(y), df, rtol=1e-12, atol=1e-14)


@every_activation
def test_the_second_derivative_is_torchs_at_kinks_and_in_saturation(device: str, activation: Activation) -> None:
    z = points(device)
    if activation.name == "hardsigmoid":
        pytest.skip("torch has no second derivative of hardsigmoid; the next test holds ours")
    y = TORCH[activation](z)
    (df,) = torch.autograd.grad(y.sum(), z, create_graph=True)
    d2f = torch.autograd.grad(df.sum(), z)[0] if df.requires_grad else torch.zeros_like(z)
    # torch's mish gives NaN at 1e4, where the truth is 0.
    known = d2f.isfinite()
    assert known.sum() >= len(POINTS) - (activation.name == "mish")
    torch.testing.assert_close(activation.d2f(z)[known], d2f[known], rtol=1e-10, atol=1e-13)
    if activation.d2f_y is not None:
        from_y = activation.d2f_y(y) * activation.df_y(y)
        torch.testing.assert_close(from_y[known], d2f[known], rtol=1e-10, atol=1e-13)


@every_activation
def test_the_second_derivative_is_the_slope_of_the_slope(device: str, activation: Activation) -> None:
    z = torch.linspace(-8, 8, 401, dtype=torch.float64, device=device) + 0.0123  # No kink within a step.
    step = 1e-5
    difference = (activation.df(z + step) - activation.df(z - step)) / (2 * step)
    torch.testing.assert_close(
        activation.d2f(z), difference, rtol=1e-6, atol=1e-8 * max(1, abs(activation.d2f(z)).max())
    )


@every_activation
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_nothing_is_nan_at_1e4(device: str, activation: Activation, dtype: torch.dtype) -> None:
    z = points(device, dtype).detach()
    y = activation.f(z)
    kept = z if activation.df_y is None else y
    # In float16 the square of 1e4 is infinite, as it is in torch.
    bad = torch.isnan if dtype is torch.float16 else lambda t: ~t.isfinite()
    products = [delta_of(torch.ones_like(y), kept, activation, plain) for plain in (True, False)]
    assert all(t.dtype == dtype for t in (y, *products))
    assert not any(bad(t).any() for t in (y, slope(z, activation.by_z), *products))
    if dtype in (torch.float64, torch.float32):
        assert activation.d2f(z).isfinite().all()


@every_activation
def test_the_kernel_is_dy_times_the_slope(device: str, activation: Activation) -> None:
    z, dy = points(device).detach(), torch.randn(len(POINTS), dtype=torch.float64, device=device)
    kept = z if activation.df_y is None else activation.f(z)
    expected = dy * activation.df(z)
    for plain in (True, False):
        tolerance = FIRST_ORDER.get(activation.name, 1e-14)
        torch.testing.assert_close(delta_of(dy, kept, activation, plain), expected, rtol=1e-12, atol=10 * tolerance)


@every_activation
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_terms_of_second_order_are_products_with_both_derivatives(
    device: str, activation: Activation, dtype: torch.dtype
) -> None:
    z = torch.cat([points(device, dtype).detach(), torch.linspace(-9, 9, 301, dtype=dtype, device=device)])
    kept = z if activation.df_y is None else activation.f(z)
    before, dy, q = kept.clone(), torch.randn_like(z), torch.randn_like(z)
    df, d2f = (activation.df, activation.d2f) if activation.df_y is None else (activation.df_y, activation.d2f_y)
    slope, curvature = df(kept), d2f(kept)
    for plain in (True, False):
        *slopes, r = second_of_delta(dy, q.clone(), kept, activation, plain)
        eps = 100 * torch.finfo(dtype).eps
        for t, result in zip((dy, q), slopes, strict=True):
            torch.testing.assert_close(result, t * slope, rtol=eps, atol=eps * max(1.0, slope.abs().max().item()))
        expected = q * dy * curvature
        torch.testing.assert_close(r, expected, rtol=eps, atol=eps * max(1.0, curvature.abs().max().item()))
    assert torch.equal(kept, before)


@every_activation
def test_the_slope_differentiates_to_the_records_own_second_derivative(device: str, activation: Activation) -> None:
    z = points(device)
    (d2f,) = torch.autograd.grad(slope(z, activation.by_z).sum(), z)
    assert torch.equal(d2f, activation.d2f(z.detach()))


@every_activation
def test_a_record_survives_pickle_and_deepcopy_as_the_same_object(activation: Activation) -> None:
    assert pickle.loads(pickle.dumps(activation)) is activation
    assert copy.deepcopy(activation) is activation


MODULES = [
    nn.Identity(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(0.3),
    nn.ELU(0.7),
    nn.CELU(0.7),
    nn.SELU(),
    nn.Sigmoid(),
    nn.LogSigmoid(),
    nn.Tanh(),
    nn.Softplus(3.0, 2.0),
    nn.Softsign(),
    nn.Hardtanh(-0.5, 2.0),
    nn.ReLU6(),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.Mish(),
]


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_a_module_is_understood_with_its_parameters_and_given_back(module: nn.Module) -> None:
    z = torch.linspace(-7, 7, 101, dtype=torch.float64)
    expected = copy.deepcopy(module)(z.clone())
    torch.testing.assert_close(get(module).f(z.clone()), expected, rtol=1e-14, atol=1e-14)
    again = to_module(get(module))
    assert type(again) is type(module)
    assert get(again) is get(module)


@pytest.mark.parametrize("activation", [activations.sin(30.0), activations.squared_relu(), activations.lecun_tanh()])
def test_an_activation_without_an_nn_class_becomes_a_module_and_comes_back(activation: Activation) -> None:
    module = to_module(activation)
    z = torch.randn(5)
    assert torch.equal(module(z), activation.f(z))
    assert get(module) is activation
    assert repr(activation) in repr(module)
    assert get(pickle.loads(pickle.dumps(module))) is activation


def test_equal_arguments_give_one_object() -> None:
    assert activations.leaky_relu() is activations.leaky_relu(negative_slope=0.01) is get("leaky_relu")
    assert activations.leaky_relu(0.2) is not activations.leaky_relu()
    assert get("gelu_tanh") is activations.gelu("tanh")
    assert repr(activations.softplus(2.0)) == "softplus(2.0, 20.0)"


def opaque_slope(z: Tensor) -> Tensor:
    with torch.no_grad():
        return 3 * z**2


def test_a_users_own_record_is_right_to_second_order_even_if_its_slope_hides_from_autograd(device: str) -> None:
    cubic = Activation(f=lambda z: z**3, df=opaque_slope, d2f=lambda z: 6 * z)
    h, w, b = (torch.randn(*s, dtype=torch.float64, device=device, requires_grad=True) for s in ((5, 4), (7, 4), (7,)))

    def hessian_product(layer: object) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(layer(h, w, b).sin().sum(), (h, w, b), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (h, w, b))

    ours = hessian_product(lambda h, w, b: manual_mlp.dense(h, w, b, cubic))
    theirs = hessian_product(lambda h, w, b: F.linear(h, w, b) ** 3)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-9)
    by_func = torch.func.hessian(lambda h: manual_mlp.dense(h, w, b, cubic).sum())(h)
    torch.testing.assert_close(by_func, torch.func.hessian(lambda h: (F.linear(h, w, b) ** 3).sum())(h))


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"expected an activation among identity, relu.*got 'rleu'"):
        get("rleu")


def test_an_unknown_module_is_told_the_known_ones() -> None:
    class MyReLU(nn.ReLU):
        pass

    for module in (nn.PReLU(), MyReLU()):
        with pytest.raises(
            TypeError, match=rf"expected an activation module among Identity, ReLU.*{type(module).__name__}"
        ):
            get(module)


def test_a_wrong_type_and_wrong_parameters_are_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a name, an nn.Module, an Activation or None, got int"):
        get(3)
    with pytest.raises(ValueError, match=r"expected min_val <= max_val, got min_val=1.0, max_val=-1.0"):
        activations.hardtanh(1.0, -1.0)
    with pytest.raises(ValueError, match=r"expected alpha other than 0, got 0.0"):
        activations.celu(0.0)
    with pytest.raises(ValueError, match=r"expected approximate 'none' or 'tanh', got 'erf'"):
        activations.gelu("erf")


def test_a_users_record_is_copied_whatever_its_name_and_parameters() -> None:
    for name, params in (("relu", ()), ("elu", ("x",)), ("own", ([1, 2],))):
        mine = Activation(torch.sin, torch.cos, opaque_slope, name=name, params=params)
        twin = copy.deepcopy(mine)
        assert (twin.f, twin.df, twin.d2f, twin.name, twin.params) == (mine.f, mine.df, mine.d2f, name, params)
        assert get(to_module(mine)) is mine


def test_a_slope_from_y_comes_with_its_derivative() -> None:
    tanh = activations.tanh()
    for given in ({"df_y": tanh.df_y}, {"d2f_y": tanh.d2f_y}):
        with pytest.raises(ValueError, match="expected both of df_y and d2f_y, or neither"):
            Activation(tanh.f, tanh.df, tanh.d2f, **given)
