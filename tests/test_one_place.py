"""An activation, a loss and a recipe are added in one place each, here, and go through every door; then are forgotten.

What is added is used by its name alone: the doors read the tables.
"""

import copy
import itertools
import runpy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from manual_mlp import MLP, Activation, Dense, DenseSquaredError, activations, backprop, dense, dense_squared_error
from manual_mlp.__main__ import main as command
from manual_mlp.activations import get, to_module
from manual_mlp.explain import check_my_backward
from manual_mlp.formulas.losses import Loss
from manual_mlp.formulas.products import rows
from manual_mlp.head.plan import Head
from manual_mlp.loss_checks import check_squared_error
from manual_mlp.losses import LOSSES, Criterion, Known, flags
from manual_mlp.output import loss_of_head, loss_of_output

ROOT = Path(__file__).parents[1]
N, D, V = 5, 4, 3
pytestmark = pytest.mark.usefixtures("forget")


def swing(rate=1.0):
    """Arc tangent.

    f = atan(rate·z)
    f′ = rate/(1 + u²)
    f″ = −2·rate²·u/(1 + u²)²
    where u = rate·z
    """
    return Activation(
        f=lambda z: torch.atan(rate * z),
        df=lambda z: rate / (1 + (rate * z) ** 2),
        d2f=lambda z: -2 * rate**3 * z / (1 + (rate * z) ** 2) ** 2,
    )


class Swing(nn.Module):
    """A module of a user's own that computes the same."""

    def __init__(self, rate=1.0):
        super().__init__()
        self.rate = rate

    def forward(self, input):
        return torch.atan(self.rate * input)


@dataclass(eq=False)
class LogCosh(Loss):
    """ln cosh(y − t) of each entry; its gradient is tanh(y − t)."""

    target: Tensor

    def values(self, y: Tensor, at: slice, need_dy: bool) -> tuple[Tensor, Tensor | None]:
        error = y - self.target[at]
        return torch.log(torch.cosh(error)), torch.tanh(error) if need_dy else None

    def curvature(self, y: Tensor, q: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        slope = torch.tanh(y - self.target[at])
        return slope, q * (1 - slope.square())

    def composite(self, y: Tensor, reduction: str) -> Tensor:
        values = torch.log(torch.cosh(y - self.target))
        return values if reduction == "none" else values.mean() if reduction == "mean" else values.sum()


@pytest.fixture
def activation():
    """Add the activation "swing"."""
    return activations.register(module=Swing, source="torch.atan(rate * z)")(swing)


@pytest.fixture
def loss():
    """Add the loss "log_cosh"."""
    LOSSES["log_cosh"] = Known(
        check_squared_error,
        lambda input, target: LogCosh(rows(target)),
        words="the sum of the logarithms of the hyperbolic cosines of Y − `Y*`",
        slope="tanh(Y − Y*)",
        gradient=lambda y, target: torch.tanh(y - target),
    )
    return "log_cosh"


@pytest.fixture
def recipe(activation, loss):
    """Add the recipe "mine", of that activation and that loss."""
    from manual_mlp.training.recipes import RECIPES, Recipe

    flags = {"dataset": "digits", "hidden": (11,), "activation": "swing", "loss": "log-cosh", "epochs": 2, "lr": 0.01}
    RECIPES["mine"] = Recipe(8.5, "test error", "Mine 2027, A recipe of my own", {**flags, "check_every": 4})
    return "mine"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command of ``python -m manual_mlp`` in an empty folder: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        try:
            status = command(list(map(str, words)))
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


def draw(*shape, requires_grad=True):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=requires_grad)


def layer():
    return draw(N, D), draw(V, D), draw(V)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# The activation.


def test_the_activation_is_known_by_its_name_its_module_and_its_attribute(activation):
    assert activations.names()[-1] == "swing"
    assert activations.swing is activation
    assert get("swing") is activation() is get(Swing())
    assert get(Swing(2.0)) is activation(2.0)
    assert isinstance(to_module(activation(2.0)), Swing)
    assert repr(activation(2.0)) == "swing(2.0)"
    assert copy.deepcopy(activation(2.0)) is activation(2.0)
    assert activation(2.0).check() is activation(2.0)
    with pytest.raises(
        ValueError, match=r"^expected an activation among identity, .*, swing, got 'swung'; did you mean swing\?$"
    ):
        Dense(D, V, "swung")


def test_the_activation_has_its_derivatives_in_every_layer_of_every_order(activation):
    h, w, b = layer()
    for f in ("swing", activation(2.0)):
        given = {"check_batched_grad": True}
        assert gradcheck(lambda *t, f=f: dense(*t, f), (h, w, b), check_forward_ad=True, **given)
        assert gradgradcheck(lambda *t, f=f: dense(*t, f), (h, w, b), check_fwd_over_rev=True, **given)
        assert gradcheck(lambda *t, f=f: dense_squared_error(*t, f), (h, w, b, draw(N, V)))
    close(dense(h, w, b, "swing"), torch.atan(F.linear(h, w, b)))
    module = DenseSquaredError(D, V, "swing", dtype=torch.float64)
    close(module(h, h[:, :V]), 0.5 * (torch.atan(F.linear(h, module.weight, module.bias)) - h[:, :V]).square().sum())


@pytest.mark.parametrize("tile_rows", [None, 2])
def test_a_network_of_it_learns_by_autograd_and_by_backprop_and_becomes_torchs_layers(activation, tile_rows):
    mlp, x, t = MLP([D, 7, V], "swing", "swing", tile_rows=tile_rows, dtype=torch.float64), draw(N, D), draw(N, V)
    sequential = mlp.to_sequential()
    assert [type(module) for module in sequential] == [nn.Linear, Swing] * 2
    assert [layer.activation for layer in MLP.from_sequential(sequential).layers] == [activation()] * 2
    wanted = torch.autograd.grad(0.5 * (sequential(x) - t).square().mean(), (x, *sequential.parameters()))
    found = torch.autograd.grad(0.5 * (mlp(x) - t).square().mean(), (x, *mlp.parameters()))
    backprop(mlp, x, t.detach(), "squared_error")
    for one, other, p in zip(wanted, found, (x, *mlp.parameters()), strict=True):
        close(other, one)
        close(p.grad, one)


def test_the_activation_is_explained_graded_and_written_into_the_documents(activation, run, tmp_path):
    status, out, err = run("explain", "--activation", "swing")
    assert (status, err) == (0, "")
    assert "Here f is swing: f(z) = atan(rate·z), where rate = 1.0." in " ".join(out.split())
    assert run("explain", "--activation", "swing", "--html", "page.html")[0] == 0
    made = (tmp_path / "page.html").read_text("utf-8")
    assert "</math> is swing: " in made
    assert "<script" not in made
    assert " swing " in " ".join(run("explain", "--help")[1].split())

    def backward(H, W, B, target):
        Y = torch.atan(H @ W + B)
        return {"Y": Y, "dB": (Y - target).sum(0)}

    grade = check_my_backward(backward)
    assert not grade.passed
    assert "activation='swing'" in str(grade) or "Y = swing(Z)" in str(grade)
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))["TABLES"]
    assert tables["activations"]().endswith("`sin`, `swing`.")
    assert tables["of-z"]().endswith(
        "| `swing(rate)` | atan(rate·z) | rate/(1 + u²) | −2·rate²·u/(1 + u²)² | u = rate·z |"
    )


# The loss.


@pytest.mark.parametrize(("reduction", "tile_rows"), [*itertools.product(("mean", "sum", "none"), (None, 2))])
def test_backprop_knows_the_loss_by_its_name(loss, reduction, tile_rows):
    mlp, x, t = MLP([D, 7, V], "tanh", tile_rows=tile_rows, dtype=torch.float64), draw(N, D), draw(N, V).detach()
    gradient = torch.rand(N, V, dtype=torch.float64) if reduction == "none" else 0.5
    value = LogCosh(t).composite(mlp(x), reduction)
    wanted = torch.autograd.grad((gradient * value).sum(), (x, *mlp.parameters()))
    close(backprop(mlp, x, t, loss, reduction, gradient=gradient), value.detach())
    for p, one in zip((x, *mlp.parameters()), wanted, strict=True):
        close(p.grad, one)
    with pytest.raises(ValueError, match=r"^expected a loss among cross_entropy, .*, log_cosh, or a pair of functions"):
        backprop(mlp, x, t, "log_cos")
    with pytest.raises(TypeError, match=r"^expected options among none for loss 'log_cosh', got weight$"):
        backprop(mlp, x, t, loss, weight=t)


@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_a_layer_with_the_loss_has_derivatives_of_both_orders(loss, chunk_rows):
    h, w, b = layer()
    t = draw(N, V, requires_grad=False)

    def whole(h, w, b):
        return loss_of_head(Head(h, w, b, get("tanh")), criterion, chunk_rows)

    criterion = Criterion(LOSSES[loss], t, "mean", {})
    assert gradcheck(whole, (h, w, b), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(whole, (h, w, b))
    assert gradcheck(lambda y: loss_of_output(y, criterion), (draw(N, V),), check_forward_ad=True)


def test_the_loss_is_explained_and_graded(loss, run, tmp_path):
    status, out, err = run("explain", "--loss", "log-cosh")
    assert (status, err) == (0, "")
    out = " ".join(out.split())
    assert "the sum of the logarithms of the hyperbolic cosines of Y − Y*" in out
    assert "∂J/∂Y = tanh(Y − Y*)" in out
    assert run("explain", "--loss", "log-cosh", "--html", "page.html")[0] == 0
    made = (tmp_path / "page.html").read_text("utf-8")
    assert "the sum of the logarithms of the hyperbolic cosines of" in made
    assert "<script" not in made
    assert "f, J or a formula is a function that it does not know" in made
    assert "log-cosh" in run("explain", "--help")[1]

    def backward(H, W, B, target):
        Y = torch.sigmoid(H @ W + B)
        delta = torch.tanh(Y - target) * Y * (1 - Y)
        return {"dY": torch.tanh(Y - target), "delta": delta, "dW": H.T @ delta, "dB": delta.sum(0)}

    assert check_my_backward(backward, loss="log-cosh").passed
    other = check_my_backward(backward)
    assert other.mistakes == ("another-loss",)
    assert "loss='log-cosh'" in str(other)
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))["TABLES"]
    assert tables["losses"]().endswith(", `log_cosh`.")


# The recipe, and a run of all three.


@pytest.fixture
def train(capsys, monkeypatch, tmp_path):
    """Run train.py in this process and an empty folder: exit status, stdout, stderr."""
    for package in ("tyro", "torchvision", "tensorboard", "sklearn", "safetensors"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(ROOT / "train.py"))["main"]

    def call(*flags):
        monkeypatch.setattr("sys.argv", ["train.py", *flags])
        try:
            status = main()
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


def test_the_recipe_is_listed_wherever_recipes_are(recipe, capsys):
    pytest.importorskip("torchvision")
    from benchmarks import literature
    from benchmarks.report import training
    from manual_mlp.training.config import Config
    from manual_mlp.training.recipes import listed

    assert listed().splitlines()[-1].split()[:2] == ["mine", "11"]
    assert Config(recipe="mine").recipe == "mine"
    assert literature.read_options(["--table"]).recipes[-1] == "mine"
    row = {"recipe": "mine", "error": [8.0, 7.0, 9.0], "seeds": 3, "seconds": [1.0, 1.0, 1.0], "epochs": 2}
    row |= {"of_epochs": 2, "threads": 1, "machine": {"device": "cpu", "cpu": "AMD EPYC"}}
    assert training.literature({"rows": [row]}).splitlines()[-1] == (
        "| `mine` | Mine 2027 | 11 | 8.50 | 8.00 [7.00, 9.00] | 3 | 2 | 1 | AMD EPYC, 1 |"
    )


def test_a_run_of_the_recipe_is_trained_resumed_read_back_explained_and_exported(recipe, train, run, tmp_path):
    from manual_mlp.training import load_run
    from runs import reader

    help = "".join(train("--help")[1].replace("│", "").split())
    assert all(word in help for word in ("sin,swing}", "binary-cross-entropy,log-cosh}", "dropout,mine}"))
    status, out, err = train("--recipe", "mine", "--name", "run")
    assert status == 0, err
    assert "test accuracy" in out
    accuracy = float(out.rpartition("test accuracy ")[2].split()[0])
    assert accuracy > 50, out  # of ten classes
    status, out, err = train("--resume", "runs/run")
    assert status == 0, err
    assert "resumed after epoch 2 of 2" in out
    model, x = load_run("runs/run"), torch.rand(7, 64)
    assert model.layers[0].activation is get("swing")
    assert run("explain", "--checkpoint", "runs/run")[0] == 0
    for to, suffix, packages in (
        ("onnx", ".onnx", ("onnx", "onnxscript", "onnxruntime")),
        ("torch-export", ".pt2", ()),
        ("sequential", ".pt", ()),
    ):
        for package in packages:
            pytest.importorskip(package)
        status, _, err = run("export", "runs/run", "--to", to)
        assert status == 0, err
        torch.testing.assert_close(reader(Path(f"runs/run/model{suffix}"))(x), model(x), atol=1e-5, rtol=1e-5)


def test_what_was_added_is_forgotten_at_every_door(recipe, forget, train, run):
    forget()
    assert "swing" not in activations.names()
    assert "log-cosh" not in flags()
    for words, said in (
        (("--activation", "swing"), "got 'swing'"),
        (("--loss", "log-cosh"), "log-cosh"),
    ):
        status, out, err = run("explain", *words)
        assert (status, out) == (2, "")
        assert said in err
    for flag, value in (("recipe", "mine"), ("activation", "swing"), ("loss", "log-cosh")):
        status, out, err = train(f"--{flag}", value)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert value in err
