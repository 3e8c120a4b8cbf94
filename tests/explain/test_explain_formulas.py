"""The formulas as data: f and f′ of every activation, every loss, the chain, and the eight mistakes, by other ways."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import reference
from manual_mlp import Activation, activations
from manual_mlp.explain import MISTAKES, Formulas, draw_network, explain
from manual_mlp.explain.blocks import Refused
from manual_mlp.explain.evaluate import Scope
from manual_mlp.explain.expressions import is_data, parse
from manual_mlp.explain.formulas import CHAIN, Function, cost, in_words, of_activation, of_loss
from manual_mlp.explain.story import Story
from manual_mlp.explain.trees import Trees
from manual_mlp.formulas import layer
from manual_mlp.losses import LOSSES, Criterion, by_flag
from shown import CUBIC, RIGHT, same, wrong
from shown import LOSSES as FLAGS

MODULES = (
    *(nn.LeakyReLU(0.3), nn.LeakyReLU(-0.2), nn.Hardtanh(-0.5, 2.5), nn.ELU(2.0), nn.CELU(0.7), nn.CELU(-1.3)),
    *(nn.Softplus(3, 2), nn.GELU("tanh")),
)
ACTIVATIONS = {name: activations.get(name) for name in activations.names()}
ACTIVATIONS |= {str(module): activations.get(module) for module in MODULES}
ACTIVATIONS |= {repr(f): f for f in (activations.softcap(2.5), activations.sin(30.0), activations.hardtanh(0.25, 0.25))}
FAR = [20.5, 55.3, 345.6, 777.7, 1234.5]
Z = torch.cat([torch.linspace(-12.3, 12.17, 184), torch.tensor([-x for x in FAR] + FAR)]).double().view(-1, 2)
UNBOUNDED = [activations.hardtanh(0.0, math.inf), activations.softplus(2.0, math.inf)]


def scope_of(f, z=Z):
    return Scope({"z": z}, {"y": parse("f(z)"), "s": parse("df(z)"), "total": parse("sum(f(z))")}, of_activation(f))


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


# Activations.


def test_data_is_what_json_can_hold():
    assert is_data(parse("a + f(2.5) * b.T"))
    assert is_data(True)
    for part in (math.sin, math.inf, -math.inf, math.nan):
        assert not is_data(["+", "a", ["*", part, "b"]])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_data_and_computes_what_its_record_does(name):
    made, f = of_activation(ACTIVATIONS[name]), ACTIVATIONS[name]
    assert all(names == ("z",) and is_data(body) for names, body in made.values())
    assert json.loads(json.dumps(made)) == {key: [list(names), body] for key, (names, body) in made.items()}
    close(scope_of(f)["y"], f.f(Z))
    close(scope_of(f)["s"], f.df(Z))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_slopes_of_f_are_those_of_the_record_far_out_too(name):
    f = ACTIVATIONS[name]
    torch.testing.assert_close(scope_of(f).slopes("total", "z"), f.df(Z), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("f", UNBOUNDED, ids=repr)
def test_a_formula_with_an_infinite_number_is_none_that_a_page_can_read(f):
    close(scope_of(f)["y"], f.f(Z))
    close(scope_of(f)["s"], f.df(Z))
    assert not all(is_data(body) for _, body in of_activation(f).values())
    assert "The numbers of this page stand still" in explain(draw_network(activation=f)).html()


def test_an_activation_without_a_docstring_is_called_and_can_be_explained():
    assert not any(is_data(body) for _, body in of_activation(CUBIC).values())
    same(scope_of(CUBIC, Z[:20])["y"], Z[:20] ** 3, 1e-9)
    same(scope_of(CUBIC, Z[:20])["s"], 3 * Z[:20] ** 2, 1e-9)
    same(scope_of(CUBIC, Z[:20]).slopes("total", "z"), 3 * Z[:20] ** 2, 1e-9)
    assert not [step for step in explain(draw_network(activation=CUBIC)) if step.failed]


def own(text):
    """Register the activation "ramp", ¼z² + z from −2 to 2 and straight beyond, with a docstring."""

    def ramp(rate=0.5):
        return Activation(
            f=lambda z: torch.where(z.abs() < 2, rate * z * z / 2 + z, z + 2 * rate * z.abs() - 2 * rate),
            df=lambda z: 1 + rate * z.clamp(-2, 2),
            d2f=lambda z: rate * (z.abs() < 2).to(z.dtype),
        )

    ramp.__doc__ = text
    return activations.register(ramp)()


F_OF_RAMP = "r·z²/2 + z if |z| < 2, else z + 2·r·|z| − 2·r"
DF_OF_RAMP = "1 + r·min(max(z, −2), 2)"
WHERE = "where r = rate"


def test_a_right_docstring_is_believed(forget):
    f = own(f"Ramp.\n\nf = {F_OF_RAMP}\nf′ = {DF_OF_RAMP}\n{WHERE}\n")
    f.check()
    assert all(is_data(body) for _, body in of_activation(f).values())
    close(scope_of(f)["y"], f.f(Z))
    close(scope_of(f)["s"], f.df(Z))
    assert in_words(f) == f"`f(z) = {F_OF_RAMP}`, where `r = rate`, `rate = 0.5`"


# Each is wrong; a None is right.
OTHERS = [
    (F_OF_RAMP + " + 0.001", None),
    (None, "1 + r·max(z, −2)"),
    (None, DF_OF_RAMP + " if |z| < 100, else 1"),
    (F_OF_RAMP.replace("z +", "−z +"), "1"),
    (f"sum0({F_OF_RAMP})", f"row({DF_OF_RAMP}, 0)"),
    ("row(z, 1000)", "head(z, 1, 1)"),
    ("a ramp", "straight outside"),
    ("ramp(z)", "r·q"),
    ("max(z)", "min(z, 1, 2)"),
    ("z @ z @ z", "z.T"),
    ("ln(z)", "sum(1)"),
]


@pytest.mark.parametrize(("of_f", "of_df"), OTHERS)
def test_a_wrong_docstring_is_not_believed_and_the_record_is_called(forget, of_f, of_df):
    f = own(f"Ramp.\n\nf = {of_f or F_OF_RAMP}\nf′ = {of_df or DF_OF_RAMP}\n{WHERE}\n")
    made = of_activation(f)
    assert is_data(made["f"][1]) == (of_f is None)
    assert is_data(made["df"][1]) == (of_df is None)
    close(scope_of(f)["y"], f.f(Z))
    close(scope_of(f)["s"], f.df(Z))


@pytest.mark.parametrize("slope", [0.0, 2.5])
def test_a_constant_slope_has_an_entry_for_each_z(forget, slope):
    def straight(slope=slope):
        """A straight line.

        f = slope·z
        f′ = slope
        """
        return Activation(f=lambda z: slope * z, df=lambda z: torch.full_like(z, slope), d2f=torch.zeros_like)

    f = activations.register(straight)()
    assert all(is_data(body) for _, body in of_activation(f).values())
    same(scope_of(f)["s"], torch.full_like(Z, slope))


def test_a_reader_is_told_the_letters_of_f_and_not_those_of_its_slope_alone():
    told = {
        "silu": "`f(z) = z·s`, where `s = σ(z)`",
        "tanh": "`f(z) = tanh(z)`",
        "lecun_tanh": "`f(z) = a·t`, where `a = 1.7159`, `b = 2/3`, `t = tanh(b·z)`",
        "softcap": "`f(z) = c·tanh(z/c)`, where `c = cap`, `cap = 30.0`",
    }
    assert {name: in_words(activations.get(name)) for name in told} == told
    assert in_words(CUBIC) == ""


# Losses.


def output_and_target(flag, scale=1.0, rows=5, outputs=3):
    y = scale * torch.randn(rows, outputs, dtype=torch.float64)
    t = torch.rand(rows, outputs, dtype=torch.float64)
    return y, (t / t.sum(1, keepdim=True) if by_flag(flag).of_classes else t)


def loss_scope(flag, y, t):
    named = {name: parse(f"{name}(Y{'' if name == 'shares' else ', T'})") for name in of_loss(flag)}
    return Scope({"Y": y, "T": t}, named, of_loss(flag))


@pytest.mark.parametrize("scale", [1.0, 800.0])
@pytest.mark.parametrize("flag", FLAGS)
def test_the_cost_of_a_loss_its_slope_and_its_shares_are_torchs(flag, scale):
    y, t = output_and_target(flag, scale)
    scope, leaf = loss_scope(flag, y, t), y.clone().requires_grad_()
    value = Criterion(by_flag(flag), t, "sum", {}).torchs(leaf)
    (slope,) = torch.autograd.grad(value, leaf)
    close(scope["J"], value.detach().view(1, 1))
    close(scope["slope"], slope)
    close(scope["shares"], by_flag(flag).shares(y))
    close(cost(flag, y, t), value.detach())


@pytest.mark.parametrize("scale", [1.0, 800.0])
@pytest.mark.parametrize("flag", FLAGS)
def test_the_slope_of_a_loss_is_the_derivative_of_its_cost(flag, scale):
    y, t = output_and_target(flag, scale)
    scope = loss_scope(flag, y, t)
    same(scope.slopes("J", "Y"), scope["slope"], 1e-10)
    same(scope.differences("J", "Y"), scope["slope"], 1e-6 * scale)


@pytest.mark.parametrize("flag", FLAGS)
def test_the_cost_of_a_loss_takes_complex_numbers_if_it_has_a_form_for_them(flag):
    y, t = output_and_target(flag)
    if by_flag(flag).cost is not None:
        found = torch.zeros_like(y)
        for n, i in torch.cartesian_prod(torch.arange(5), torch.arange(3)).tolist():
            nudged = y.to(torch.complex128)
            nudged[n, i] += 1e-100j
            found[n, i] = cost(flag, nudged, t).imag / 1e-100
        same(loss_scope(flag, y, t)["slope"], found)


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("torchs", [True, False], ids=["by torch", "in complex operations"])
def test_a_loss_that_nobody_wrote_is_called_and_finds_the_same(forget, flag, torchs):
    own_cost = None if torchs else by_flag(flag).cost
    LOSSES["unwritten"] = by_flag(flag)._replace(written=None, cost=own_cost)
    y, t = output_and_target(flag)
    called, written = loss_scope("unwritten", y, t), loss_scope(flag, y, t)
    assert not any(is_data(of_loss("unwritten")[name][1]) for name in ("J", "slope", "shares"))
    for name in ("J", "slope", "shares", "diagonal"):
        close(called[name], written[name])
    close(called.slopes("J", "Y"), written["slope"])
    close(y, written.given["Y"])


def test_every_loss_of_the_package_is_data():
    assert all(is_data(body) for flag in FLAGS for _, body in of_loss(flag).values())


# Formulas that are called.

FIELDS = ("cost_gradient", "delta", "weight", "stored_weight", "bias", "input", "softmax")
NAMES = ("identity", "sigmoid", "tanh", "relu", "gelu", "softplus", "sin", "leaky_relu")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", [(5, 3, 2), (1, 4, 1), (3, 3, 3)])
def test_the_formulas_are_those_of_the_package_in_the_textbooks_layout(name, sizes):
    f, (rows, inputs, outputs) = activations.get(name), sizes
    dy, z = torch.randn(2, rows, outputs, dtype=torch.float64)
    h, w = torch.randn(rows, inputs, dtype=torch.float64), torch.randn(inputs, outputs, dtype=torch.float64)
    delta = RIGHT.delta(dy, z, f)
    close(delta, layer.delta_of(dy, z if f.df_y is None else f.f(z), f))
    close(RIGHT.weight(h, delta), layer.dw_of(delta, h).T)
    close(RIGHT.stored_weight(h, delta), layer.dw_of(delta, h))
    close(RIGHT.bias(delta), layer.db_of(delta)[None])
    close(RIGHT.input(delta, w), layer.dh_of(delta, w.T))


@pytest.mark.parametrize("flag", FLAGS)
def test_the_formula_of_the_costs_gradient_is_that_of_the_packages_losses(flag):
    y, t = output_and_target(flag)
    close(RIGHT.cost_gradient(flag, y, t), by_flag(flag).make(y, t).values(y.clone(), slice(None), True)[1])
    p = torch.softmax(y, 1)
    close(RIGHT.softmax(y, t), p - t)


def test_a_formula_takes_the_values_that_it_names_and_no_others():
    double = Function("2 * a + b.T", ("a", "b"))
    same(double(Z[:2], Z[:2]), 2 * Z[:2] + Z[:2].T)
    assert double.on("X", "dY") == parse("2 * X + dY.T")
    assert Function("dY * df(Z)", ("dY", "Z", "f")).on("dH", "Z1") == parse("dH * df(Z1)")
    with pytest.raises(ValueError, match="zip"):
        double(Z)


# The eight mistakes, by loops: what each calls wrong.


def by_loops(H, dY, Z, T, delta, f):
    """What each mistake calls wrong, by its name and the field, of 3 rows, inputs and outputs, which hide a shape."""

    def table(entry, rows=3):
        return [[entry(n, i) for i in range(3)] for n in range(rows)]

    def dp(n, i):
        p = reference.softmax(Z[n])
        return -T[n][i] / p[i] * p[i] * (1 - p[i])

    def total(n, i):
        return sum(delta[n][i] for n in range(3))

    def H_delta(k, i):
        return sum(H[n][k] * delta[n][i] for n in range(3))

    return {
        ("transpose-dropped", "weight"): table(lambda n, i: sum(H[n][m] * delta[m][i] for m in range(3))),
        ("product-for-hadamard", "delta"): table(lambda n, i: sum(dY[n][m] * f.df(Z[m][i]) for m in range(3))),
        ("slope-forgotten", "delta"): dY,
        ("slope-at-output", "delta"): table(lambda n, i: dY[n][i] * f.df(f.f(Z[n][i]))),
        ("mean-for-sum", "weight"): table(lambda k, i: H_delta(k, i) / 3),
        ("mean-for-sum", "stored_weight"): table(lambda i, k: H_delta(k, i) / 3),
        ("mean-for-sum", "bias"): table(lambda n, i: total(n, i) / 3, rows=1),
        ("bias-not-summed", "bias"): delta,
        ("convention-swapped", "stored_weight"): table(H_delta),
        ("softmax-as-diagonal", "softmax"): table(dp),
        ("softmax-as-diagonal", "cost_gradient"): table(dp),
    }


@pytest.mark.parametrize("name", ["sigmoid", "gelu", "softplus"])
def test_a_mistakes_formula_is_what_its_words_say_and_not_the_right_one(name):
    f, truth = activations.get(name), reference.ACTIVATIONS[name]()
    H, dY, Z3, T = torch.randn(4, 3, 3, dtype=torch.float64)
    delta = dY * f.df(Z3)
    given = {"delta": (dY, Z3, f), "bias": (delta,), "softmax": (Z3, T), "cost_gradient": ("cross-entropy", Z3, T)}
    wanted = by_loops(*(t.tolist() for t in (H, dY, Z3, T, delta)), truth)
    for (mistake, field), table in wanted.items():
        arguments = given.get(field, (H, delta))
        found = getattr(MISTAKES[mistake].formulas, field)(*arguments)
        same(found, table)
        right = getattr(RIGHT, field)(*arguments)
        assert right.shape != found.shape or float((right - found).abs().max()) > 1e-3
    assert {mistake: one.formulas.changed for mistake, one in MISTAKES.items()} == {
        mistake: tuple(field for field in FIELDS if (mistake, field) in wanted) for mistake in MISTAKES
    }
    assert {(mistake, one.of) for mistake, one in MISTAKES.items()} <= {*wanted}


def test_a_loss_of_entries_has_no_diagonal_mistake():
    for flag in ("squared-error", "binary-cross-entropy"):
        y, t = output_and_target(flag)
        close(MISTAKES["softmax-as-diagonal"].formulas.cost_gradient(flag, y, t), RIGHT.cost_gradient(flag, y, t))


# The chain.


@pytest.mark.parametrize("flag", FLAGS)
def test_the_chain_is_what_autograd_finds_by_every_name(flag):
    net = draw_network(3, 4, 5, "gelu", flag)
    scope = Story(net).scope
    leaves = [t.clone().requires_grad_() for t in (net.x, net.v, net.c, net.w, net.b)]
    dX, dV, dC, dW, dB = torch.autograd.grad(net.whole_cost(*leaves), leaves)
    found = {"dX": dX, "dV": dV, "dC": dC[None], "dW": dW, "G": dW.T, "dB": dB[None], "dH": net.gradients[0]}
    for name, want in found.items():
        same(scope[name], want)
        same(scope[f"{name}_"], want)
    r, _, _ = Story(net).looked_at
    same(scope["dr"], Story(net).true_delta[r : r + 1])
    same(scope["dWr"], torch.outer(net.h[r], Story(net).true_delta[r]))


def test_a_formula_that_is_no_data_is_called_with_the_loss_and_the_activation_and_finds_the_same():
    seen = {}

    def opaque(field):
        def formula(*arguments):
            seen[field] = arguments
            return getattr(RIGHT, field)(*arguments)

        return formula

    net = draw_network(3, 2, 4, "tanh", "cross-entropy")
    formulas = Formulas(**{field: opaque(field) for field in FIELDS})
    assert formulas.changed == FIELDS
    called, right = Story(net, formulas).scope, Story(net).scope
    for name in (*CHAIN, "dr"):
        same(called[name], right[name], 0)
        same(called[f"{name}_"], right[name], 0)
        assert is_data(called.definitions[name]) == (name == "dr")
        assert is_data(called.definitions[f"{name}_"])
    assert seen["cost_gradient"][0] == "cross-entropy"
    assert seen["delta"][-1] is net.f
    assert [len(seen[field]) for field in FIELDS] == [3, 3, 2, 2, 1, 2, 2]
    same(seen["cost_gradient"][2], net.target, 0)


@pytest.mark.parametrize("field", FIELDS)
def test_a_changed_formula_is_named_and_what_ends_in_an_underscore_stays_right(field):
    net = draw_network(3, 2, 4, "sigmoid", "cross-entropy")
    scope, right = Story(net, wrong(field)).scope, Story(net).scope
    assert wrong(field).changed == (field,)
    assert RIGHT.changed == replace(RIGHT).changed == ()
    for name in CHAIN:
        same(scope[f"{name}_"], right[name], 0)
        if CHAIN[name][0] == field:
            assert not torch.allclose(scope[name], right[name], rtol=1e-6, atol=0)


def test_a_formula_that_torch_refuses_refuses_all_that_comes_after_it():
    scope = Story(draw_network(3, 2, 4), MISTAKES["product-for-hadamard"].formulas).scope
    assert isinstance(scope["dY"], torch.Tensor)
    for name in ("delta", "dW", "dB", "dH", "gamma", "dV", "dX"):
        assert scope[name] == Refused("mat1 and mat2 shapes cannot be multiplied (4x2 and 4x2)")
        assert isinstance(scope[f"{name}_"], torch.Tensor)


def test_equal_trees_of_a_page_have_one_number():
    trees = Trees()
    texts = ("x + y", "y + x", "x+y", "(x + y)", "x + y + 0", "x", "2", "y + x")
    assert [trees.number(parse(text)) for text in texts] == [0, 1, 0, 0, 2, 3, 4, 1]
    assert trees.trees == [parse(text) for text in ("x + y", "y + x", "x + y + 0", "x", "2")]
