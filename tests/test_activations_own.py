"""An activation of one's own goes through every door: exported, explained, listed, or refused in a sentence."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from manual_mlp import MLP, Activation, Dense, DenseSquaredError, activations, backprop, dense, dense_squared_error
from manual_mlp.__main__ import main as command
from manual_mlp.explain import Network, check_my_backward, draw_network, explain, page, terminal
from patience import SECONDS

ROOT = Path(__file__).parent.parent


def arctan(scale=1.0):
    """f = atan(s z); f′ = s/(1 + (s z)²); f″ = −2 s³ z/(1 + (s z)²)²."""
    return Activation(
        f=lambda z: torch.atan(scale * z),
        df=lambda z: scale / (1 + (scale * z) ** 2),
        d2f=lambda z: -2 * scale**3 * z / (1 + (scale * z) ** 2) ** 2,
    )


OWN = f"Activation(f=<lambda at {Path(__file__).name}:{arctan().f.__code__.co_firstlineno}>)"
pytestmark = pytest.mark.usefixtures("forget")


@pytest.fixture
def named(forget):
    """The factory of the activation "arctan"."""
    return activations.register(arctan)


@pytest.fixture(params=["a name", "a record"])
def own(request, named):
    """The activation as it is given: by its name, or as a record that has none."""
    return "arctan" if request.param == "a name" else arctan()


def torchs(mlp, x):
    """What an MLP of arctans computes, in torch's operations."""
    for k, layer in enumerate(mlp.layers):
        x = F.linear(x, layer.weight, layer.bias)
        x = torch.atan(x) if k < len(mlp.layers) - 1 else x
    return x


# In Python.


def test_it_is_listed_and_found_and_made_anew_with_other_arguments(named):
    assert activations.names()[-1] == "arctan"
    assert activations.get("arctan") is named() is named(1.0) is named(scale=1.0)
    assert named(2.0) is named(2.0) is not named()
    assert repr(named(2.0)) == "arctan(2.0)"
    assert named().maker is named
    with pytest.raises(ValueError, match=r"among identity, .*, sin, arctan, got 'arctn'"):
        activations.get("arctn")


def test_the_layer_has_its_derivatives_to_second_order(own):
    h, w, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 4), (7, 4), (7,)))
    assert torch.autograd.gradcheck(lambda *t: dense(*t, own), (h, w, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *t: dense(*t, own), (h, w, b))
    expected = torch.autograd.grad(torch.atan(F.linear(h, w, b)).sum(), (h, w, b))
    compiled = torch.compile(lambda *t: dense(*t, own), backend="aot_eager", fullgraph=True)
    for layer in (lambda *t: dense(*t, own), compiled):
        torch.testing.assert_close(torch.autograd.grad(layer(h, w, b).sum(), (h, w, b)), expected)


def test_the_layers_and_losses_take_it(own):
    x, t = torch.randn(5, 4), torch.randn(5, 7)
    layer, loss = Dense(4, 7, own), DenseSquaredError(4, 7, own)
    expected = torch.atan(F.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(layer(x), expected)
    assert f"activation={'arctan(1.0)' if own == 'arctan' else OWN}, " in repr(layer)
    loss.load_state_dict(layer.state_dict())
    for found in (loss(x, t), dense_squared_error(x, layer.weight, layer.bias, t, own)):
        torch.testing.assert_close(found, 0.5 * (expected - t).square().sum())


@pytest.mark.usefixtures("forget")
def test_one_that_is_typed_where_there_is_no_module_goes_through_the_doors():
    typed = {"activations": activations, "arctan": arctan}
    exec("@activations.register\ndef typed():\n    return arctan()", typed)
    assert typed["typed"].__module__ is None
    h, w = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((5, 4), (3, 4)))
    found = torch.autograd.grad(dense(h, w, None, "typed").sum(), (h, w))
    expected = torch.autograd.grad(torch.atan(F.linear(h, w)).sum(), (h, w))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tile_rows", [None, 2])
def test_a_network_learns_by_autograd_and_by_backprop_and_goes_to_torchs_layers_and_back(own, tile_rows):
    mlp = MLP([4, 7, 6, 3], own, dtype=torch.float64, tile_rows=tile_rows)
    x, t = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    expected = torch.autograd.grad(F.cross_entropy(torchs(mlp, x), t), list(mlp.parameters()))
    torch.testing.assert_close(torch.autograd.grad(F.cross_entropy(mlp(x), t), list(mlp.parameters())), expected)
    backprop(mlp, x, t, tile_rows=tile_rows)
    torch.testing.assert_close([p.grad for p in mlp.parameters()], list(expected))
    sequential = mlp.to_sequential()
    torch.testing.assert_close(sequential(x), torchs(mlp, x))
    assert type(sequential[1]) is activations.Entrywise
    again = MLP.from_sequential(sequential)
    assert [layer.activation for layer in again.layers] == [layer.activation for layer in mlp.layers]


def test_it_is_copied_as_the_one_object_it_is(named):
    assert copy.deepcopy(MLP([4, 7, 3], "arctan")).layers[0].activation is named()


def module_level(slope=1.0):
    return Activation(torch.sin, torch.cos, lambda z: -torch.sin(z))


def test_a_factory_that_is_found_by_its_name_is_pickled(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "module_level", activations.register(module_level))
    assert pickle.loads(pickle.dumps(activations.get("module_level"))) is activations.get("module_level")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: arctan(), ValueError, r"^expected a function whose name is an identifier, got '<lambda>'$"),
        ("arctan", TypeError, r"^expected a function that makes an Activation, got str$"),
        (arctan(), TypeError, r"^expected a function that makes an Activation, got Activation$"),
    ],
)
def test_what_is_no_named_function_is_not_registered(make, error, message):
    with pytest.raises(error, match=message):
        activations.register(make)


def test_a_name_is_given_once(named):
    def relu():
        return arctan()

    for make, name in ((relu, "relu"), (arctan, "arctan"), (named, "arctan")):
        with pytest.raises(ValueError, match=rf"^expected a name that is not yet known, got '{name}'$"):
            activations.register(make)
    assert activations.get("relu") is activations.relu()


@pytest.mark.parametrize("name", ["", "two words", "a/b", "<b>", "a-b", "1st", "a\n", "../x", "`x`"])
def test_a_name_with_odd_characters_is_refused(name):
    def make():
        return arctan()

    make.__name__ = name
    with pytest.raises(ValueError, match=r"^expected a function whose name is an identifier, got "):
        activations.register(make)


def test_a_module_class_is_given_once_and_takes_the_factorys_arguments(named):
    class Slower(torch.nn.Module):
        def __init__(self, scale=1.0):
            super().__init__()
            self.scale = scale

    with pytest.raises(ValueError, match=r"^expected a module class that is not yet known, got Tanh$"):

        @activations.register(module=torch.nn.Tanh)
        def my_tanh():
            return arctan()

    assert "my_tanh" not in activations.names()

    @activations.register(module=Slower)
    def slower(scale=1.0):
        return arctan(scale)

    assert activations.get(Slower(0.5)) is slower(0.5)
    assert activations.to_module(slower(0.5)).scale == 0.5


def test_a_factory_needs_defaults_and_returns_an_activation():
    def steep(scale, shift=0.0, *more):
        return arctan(scale)

    def nothing():
        return torch.atan

    before = activations.names()
    with pytest.raises(ValueError, match=r"^expected a default for every argument of steep, got none for scale, more$"):
        activations.register(steep)
    with pytest.raises(TypeError, match=r"^expected nothing to return an Activation, got builtin_function_or_method$"):
        activations.register(nothing)
    assert activations.names() == before
    with pytest.raises(ValueError, match="expected an activation among"):
        activations.get("nothing")


def test_a_record_of_what_is_no_function_is_refused():
    for given in (("relu", torch.cos, torch.sin), (torch.sin, None, torch.sin), (torch.sin, torch.cos, 0)):
        with pytest.raises(TypeError, match=r"^expected (f|df|d2f) to be a function of tensors, got ('relu'|None|0)$"):
            Activation(*given)
    with pytest.raises(TypeError, match=r"^expected kernel to be a function of tensors, got 'fast'$"):
        Activation(torch.sin, torch.cos, torch.sin, kernel="fast")
    for name in ("a\0b", "two\nlines", 3):
        with pytest.raises(ValueError, match=r"^expected a name that can be printed, got "):
            Activation(torch.sin, torch.cos, torch.sin, name=name)


# Explained.


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run `python -m manual_mlp` in this process and an empty folder: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        try:
            status = command(list(map(str, words)))
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


def test_it_is_explained_in_the_terminal_and_on_the_page(named, run, tmp_path):
    status, out, err = run("explain", "--activation", "arctan")
    assert (status, err) == (0, "")
    assert "Here f is arctan" in " ".join(out.split())
    assert run("explain", "--activation", "arctan", "--html", "page.html")[0] == 0
    made = (tmp_path / "page.html").read_text("utf-8")
    assert "</math> is arctan" in made
    # No script knows it, and the page says so.
    assert "<script" not in made
    assert "f, J or a formula is a function that it does not know" in made
    assert "sin, arctan " in " ".join(run("explain", "--help")[1].split())
    assert run("explain", "--activation", "arctan", "--break", "slope-at-output")[0] == 1


def test_one_with_a_wrong_slope_is_found_out(run):
    def wrong():
        return Activation(torch.atan, torch.cos, lambda z: -torch.sin(z))

    activations.register(wrong)
    status, _, err = run("explain", "--activation", "wrong")
    assert status == 1
    assert err.startswith("failed: ")


def test_an_unknown_one_is_refused_with_the_names(named, run):
    assert run("explain", "--activation", "arctn")[::2] == (
        2,
        f"error: expected an activation among {', '.join(activations.names())}, got 'arctn'; did you mean arctan?\n",
    )


def test_a_backward_pass_over_it_is_graded(own):
    def backward(H, W, B, target):
        Z = H @ W + B
        delta = (torch.atan(Z) - target) / (1 + Z * Z)
        return {"delta": delta, "dB": delta.sum(0), "dW": H.T @ delta, "dH": delta @ W.T}

    assert check_my_backward(backward, activation=own).passed
    assert not check_my_backward(backward, activation="tanh").passed


def test_a_record_is_explained_by_its_name_whatever_that_holds():
    f = arctan()
    for name, shown in (("custom", "custom"), ("relu", "relu"), ("a`b`", "a`b`"), ("<b> & co", "<b> & co")):
        mine = Activation(f.f, f.df, f.d2f, name=name)
        net = draw_network(activation=mine)
        assert isinstance(net, Network)
        steps = explain(net)
        assert not any(step.failed for step in steps)
        assert f"Here f is {shown}." in " ".join(terminal.render(steps, 80).split())
        escaped = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert f"</math> is {escaped}." in page.render(steps, "about")


# Trained and exported.


@pytest.fixture
def train(capsys, monkeypatch, tmp_path):
    """Run train.py in this process and an empty folder, on the embedded digits: exit status, stdout, stderr."""
    for package in ("tyro", "torchvision", "tensorboard", "sklearn", "safetensors"):
        pytest.importorskip(package)
    import runpy

    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(ROOT / "train.py"))["main"]

    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, flags)])
        try:
            status = main()
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


DIGITS = ("--dataset", "digits", "--hidden", "11", "--epochs", "1", "--name", "run", "--activation", "arctan")


def pixels():
    return torch.rand(7, 64)


def test_a_run_is_trained_resumed_read_back_explained_and_exported(named, train, run):
    from manual_mlp.training import load_run
    from runs import reader

    status, out, err = train("--help")
    assert (status, err) == (0, "")
    assert "sin,arctan}" in "".join(out.replace("│", "").split())
    status, out, err = train(*DIGITS)
    assert status == 0, err
    assert "test accuracy" in out
    status, out, _ = train("--resume", "runs/run")
    assert status == 0
    assert "resumed after epoch 1 of 1" in out
    model, x = load_run("runs/run"), pixels()
    assert model.layers[0].activation is named()
    torch.testing.assert_close(model(x), torchs(model, x))
    assert run("explain", "--checkpoint", "runs/run")[0] == 0
    for to in ("onnx", "torch-export"):
        if to == "onnx":
            for package in ("onnx", "onnxscript", "onnxruntime"):
                pytest.importorskip(package)
        path = Path(f"model{ {'onnx': '.onnx', 'torch-export': '.pt2'}[to] }")
        assert run("export", "runs/run", "--to", to, "--output", path)[0] == 0
        torch.testing.assert_close(reader(path)(x), model(x), atol=1e-5, rtol=1e-5)
    assert run("export", "runs/run", "--to", "sequential") == (
        2,
        "",
        "error: expected activations of manual_mlp itself, or registered with their source, for --to sequential, got "
        "arctan(1.0), whose text is not known: take --to onnx or --to torch-export\n",
    )
    assert not Path("runs/run/model.pt").exists()


def test_where_it_is_not_registered_a_run_is_refused_by_its_name(named, forget, train, run):
    from manual_mlp.training import load_run

    assert train(*DIGITS)[0] == 0
    forget()
    with pytest.raises(ValueError, match=r"expected an activation among identity, .*, got 'arctan'"):
        load_run("runs/run")
    for words in (
        ("export", "runs/run", "--to", "onnx"),
        ("export", "runs/run", "--to", "sequential"),
        ("explain", "--checkpoint", "runs/run"),
    ):
        status, out, err = run(*words)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "got 'arctan'" in err
    for flags in (("--resume", "runs/run"), (*DIGITS, "--name", "another")):
        status, out, err = train(*flags)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: ")
        assert "lecun_tanh" in err
        assert "arctan" in err


def test_a_record_without_a_name_is_no_flag(named):
    pytest.importorskip("tyro")
    from manual_mlp.training.config import Config
    from manual_mlp.training.errors import InputError

    assert Config(activation="arctan").activation == "arctan"
    with pytest.raises(
        InputError, match=r"^expected --activation to be one of identity, .*, arctan, got Activation\(f="
    ):
        Config(activation=arctan())


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")
def test_one_that_torch_cannot_trace_is_refused_in_a_line():
    def by_value():
        return Activation(lambda z: z if float(z.sum()) > 0 else -z, torch.ones_like, torch.zeros_like)

    for package in ("safetensors", "onnx", "onnxscript"):
        pytest.importorskip(package)
    from manual_mlp.training import export

    activations.register(by_value)
    network = MLP([64, 11, 10], "by_value").eval().to_sequential()
    for write, to in ((export._onnx, "onnx"), (export._torch_export, "torch-export")):
        expected = rf"^expected activations that --to {to} can write, got by_value..: Could not guard on data-dep.*\S$"
        with pytest.raises(ValueError, match=expected):
            write(network, 64, "digits")
    # What is ours alone fails as it is: nobody's activation is to blame.
    with pytest.raises(RuntimeError, match=r"dim|shape"):
        export._torch_export(MLP([64, 11, 10], "sin").eval().to_sequential(), 63, "digits")


def test_the_text_of_a_sequential_is_never_that_of_a_namesake():
    from manual_mlp.training import export

    sine = Activation(torch.cos, torch.sin, torch.cos, name="sin")
    for activation in (sine, arctan()):
        with pytest.raises(
            ValueError, match=r"^expected activations of manual_mlp itself, or .*, got .*, whose text is"
        ):
            export._code(MLP([4, 7, 3], activation).to_sequential())
    mlp, x = MLP([4, 7, 3], activations.sin(30.0), "sin", dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    built = {}
    exec(export._code(mlp.to_sequential()), built)
    built["model"].double().load_state_dict(mlp.to_sequential().state_dict())
    torch.testing.assert_close(built["model"](x), mlp(x))


def test_texts_of_nearly_the_same_name_are_kept_apart():
    from manual_mlp.training import export

    @activations.register(source="torch.atan(z)")
    def a_b():
        return arctan()

    @activations.register(source="torch.atan(shift + 2 * z)")
    def aB(shift=0.25):
        return Activation(lambda z: torch.atan(shift + 2 * z), torch.zeros_like, torch.zeros_like)

    mlp, x = MLP([4, 7, 3], "a_b", aB(0.5), dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    built = {}
    exec(export._code(mlp.to_sequential()), built)
    built["model"].double().load_state_dict(mlp.to_sequential().state_dict())
    torch.testing.assert_close(built["model"](x), mlp(x))


def test_the_benchmarks_say_which_activations_they_know(named, capsys):
    from benchmarks.__main__ import main

    with pytest.raises(SystemExit, match="2"):
        main(["dense", "--activation", "arctan"])
    assert "invalid choice: 'arctan'" in capsys.readouterr().err


def test_a_script_of_ones_own_registers_and_trains(train, tmp_path):
    script = (
        "import runpy, sys, torch, manual_mlp\n"
        "@manual_mlp.activations.register\n"
        "def quarter():\n    return manual_mlp.Activation(lambda z: z / 4, lambda z: 0 * z + 1 / 4, torch.zeros_like)\n"
        "sys.argv[0] = 'train.py'\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    flags = [*DIGITS[:-1], "quarter"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *flags], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
