"""The examples as a user runs them, and the derivatives that they take."""

import importlib.util
import inspect
import math
import os
import re
import runpy
import subprocess
import sys

import pytest
import torch
from torch import nn

from manual_mlp import MLP, activations
from patience import SECONDS
from scripts import ENSEMBLE, FIELD, LLAMA, POISSON, SCRIPTS, SIREN, THOUSAND, assert_close, load, parameter_gradient

every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


@pytest.fixture(scope="module")
def poisson():
    return load(POISSON)


@pytest.fixture(scope="module")
def siren():
    return load(SIREN)


@pytest.fixture(scope="module")
def llama():
    pytest.importorskip("transformers")
    return load(LLAMA)


@pytest.fixture
def main(monkeypatch, tmp_path, capsys):
    """Run a script's main in this process, in an empty directory: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(script, *flags):
        monkeypatch.setattr(sys, "argv", [script.name, *map(str, flags)])
        with pytest.raises(SystemExit) as stopped:
            load(script).main()
        return stopped.value.code, *capsys.readouterr()

    return call


def run(script, picture, *flags):
    """Run a script in a process of its own, where a warning is an error, and return what it printed."""
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-W", "error", str(script), "--picture", str(picture), *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return process.stdout


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Run a script as its own command in this process, which has imported torch, and return what it printed."""
    threads = torch.get_num_threads()

    def call(script, picture, *flags):
        pytest.importorskip("matplotlib")
        monkeypatch.setattr(sys, "argv", [script.name, "--picture", str(picture), *map(str, flags)])
        runpy.run_path(str(script), run_name="__main__")
        out, err = capsys.readouterr()
        assert err == ""
        return out

    yield call
    torch.set_num_threads(threads)


def number(label, out):
    return float(re.search(rf"{re.escape(label)} (\d\S*\d)", out)[1])


def assert_is_a_picture(file):
    from matplotlib.image import imread

    assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(file)
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 900
    # Every panel has something in it: a third of the width that is one colour would be empty.
    assert all(pixels[:, i : i + pixels.shape[1] // 3].std() > 0.02 for i in range(0, 2 * pixels.shape[1] // 3, 100))


def test_the_poisson_network_comes_close_to_the_exact_solution(tmp_path):
    out = run(POISSON, tmp_path / "p.png", "--steps", 600)
    assert number("relative L2 error", out) < 0.02
    assert_is_a_picture(tmp_path / "p.png")


def test_the_siren_comes_close_to_the_true_distance(tmp_path):
    out = run(SIREN, tmp_path / "s.png", "--steps", 100)
    assert number("mean |f| at new points of the boundary", out) < 0.002
    assert number("mean error against the true distance", out) < 0.01
    assert number("over the box: mean", out) < 0.1
    assert_is_a_picture(tmp_path / "s.png")


def test_a_llama_has_the_same_losses_with_lm_loss_and_holds_less(tmp_path):
    pytest.importorskip("transformers")
    out = run(LLAMA, tmp_path / "l.png", "--steps", 4)
    rows = [list(map(float, row)) for row in re.findall(r"^ +(\d+) +([\d.]+) +([\d.]+)$", out, re.MULTILINE)]
    assert [row[0] for row in rows] == [1, 2, 3, 4]
    assert all(abs(theirs - ours) < 1e-4 for _, theirs, ours in rows)
    assert rows[0][1] > rows[-1][1] + 1
    assert number("largest difference of the losses", out) < 1e-4
    theirs, ours = map(float, re.search(r"MB at most +([\d.]+) +([\d.]+)", out).groups())
    logits = 4 * 128 * 32_000 * 4 / 1e6
    assert theirs > 2 * logits
    assert ours < logits
    assert_is_a_picture(tmp_path / "l.png")


def test_the_members_of_an_ensemble_disagree_where_there_are_no_data(run_here, tmp_path):
    out = run_here(ENSEMBLE, tmp_path / "e.png", "--steps", 100)
    gap, amid = map(float, re.search(r"disagreement: in the gap ([\d.]+), amid the data ([\d.]+)", out).groups())
    assert gap > 5 * amid
    assert number("error of the mean", out) < 0.1
    assert number("together and one by one: apart by", out) < 1e-4
    assert_is_a_picture(tmp_path / "e.png")


def test_the_field_shows_a_view_that_it_has_not_seen_and_holds_less(run_here, tmp_path):
    out = run_here(FIELD, tmp_path / "f.png", "--steps", 100)
    assert number("view held out:", out) > number("its mean colour alone", out) + 4
    ours, theirs = (float(re.search(rf"by {name}: .* ([\d.]+) MB", out)[1]) for name in ("MLP", "nn.Sequential"))
    # torch's layers keep 64 numbers of two layers for each of 256 · 32 points.
    assert theirs > 2 * 256 * 32 * 64 * 4 / 1e6
    assert ours < theirs / 2
    assert_is_a_picture(tmp_path / "f.png")


def test_a_thousand_networks_fit_better_than_the_mean_colours(run_here, tmp_path):
    out = run_here(THOUSAND, tmp_path / "t.png", "--steps", 40)
    assert number("fit", out) > number("the mean colour of each tile", out) + 2
    rows = re.findall(r"^ *(MLP|nn.Sequential), (one by one|all) .* [\d.]+ +[\d.]+$", out, re.MULTILINE)
    assert len(set(rows)) == 4
    assert_is_a_picture(tmp_path / "t.png")


@pytest.mark.parametrize("head", ["bare", "adapted"])
def test_the_gradients_of_a_llama_are_those_of_its_own_loss(llama, head):
    torch.manual_seed(0)
    model = llama.llama(vocabulary=307, width=16).double()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tokens = torch.randint(307, (2, 9))
    if head == "adapted":  # an adapter beside the head, as those who tune a model have it
        adapter = nn.Linear(16, 307, bias=False, dtype=torch.float64)
        model.lm_head.register_forward_hook(lambda module, args, output: output + adapter(args[0]))
    pairs = [(loss(model, tokens), loss) for loss in (llama.loss_of_head, llama.loss_of_model)]
    # transformers computes the loss of its logits in float32.
    torch.testing.assert_close(pairs[0][0], pairs[1][0], rtol=1e-6, atol=1e-6, check_dtype=False)
    for a, b in zip(*(torch.autograd.grad(value, list(model.parameters())) for value, _ in pairs), strict=True):
        assert_close(a, b, 1e-6)


def test_what_changes_in_the_script_of_the_llama_is_five_lines(llama):
    body = inspect.getsource(llama.loss_of_head).split('"""\n')[-1]
    assert len([line for line in body.splitlines() if line.strip()]) == 5


def test_what_a_step_holds_is_counted_at_its_most_and_to_its_end(llama):
    def step():
        large = torch.ones(10**6)
        del large
        return torch.ones(10**5)

    times, held = llama.held(step, "cpu")
    assert max(held) == 4 * 10**6
    assert held[-1] == 0
    assert times == sorted(times)


def test_untrained_networks_miss_these_bounds_by_far(poisson, siren):
    x = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    u = MLP([1, 20, 20, 1], "tanh", dtype=torch.float64)(x)
    assert (u - poisson.exact(x)).norm() / poisson.exact(x).norm() > 40 * 0.02
    points, _, box = siren.sample(512, "cpu")
    net = siren.siren()
    assert net(points).abs().mean() > 20 * 0.002
    assert (net(box)[:, 0] - siren.true_distance(box)).abs().mean() > 20 * 0.01
    # Nor does the circle that training starts from meet them.
    assert (points.norm(dim=-1) - 0.6).abs().mean() > 20 * 0.002
    assert (box.norm(dim=-1) - 0.6 - siren.true_distance(box)).abs().mean() > 2 * 0.01


def test_the_exact_solution_solves_the_poisson_problem(poisson):
    x = torch.linspace(0, 1, 41, dtype=torch.float64)[:, None].requires_grad_()
    assert_close(poisson.residual(poisson.exact, x), torch.zeros_like(x), 1e-11)
    assert poisson.loss(poisson.exact, x) < 1e-20


def test_the_residual_is_that_of_the_formula(poisson):
    # u = Σₖ aₖ tanh(wₖ x + bₖ) + c has u″ = Σₖ aₖ wₖ² (−2t (1 − t²)), t = tanh(wₖ x + bₖ).
    net = MLP([1, 7, 1], "tanh", dtype=torch.float64)
    x = torch.randn(5, 1, dtype=torch.float64, requires_grad=True)
    first, last = net.layers
    t = torch.tanh(x * first.weight.T + first.bias)
    d2u = (last.weight * first.weight.T**2 * (-2 * t * (1 - t**2))).sum(1, keepdim=True)
    f = 4 * math.pi**2 * torch.sin(2 * math.pi * x) + 6.4 * math.pi**2 * torch.sin(8 * math.pi * x)
    assert_close(poisson.residual(net, x), d2u + f)
    j = (d2u + f).square().mean() + 1e3 * (net(torch.zeros_like(x[:1])) ** 2 + net(torch.ones_like(x[:1])) ** 2)
    assert_close(poisson.loss(net, x), j)
    assert_close(parameter_gradient(poisson.loss(net, x), net), parameter_gradient(j, net))


def test_the_poisson_gradients_are_those_of_torchs_layers(poisson):
    net = MLP([1, 20, 20, 1], "tanh", dtype=torch.float64)
    theirs = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), net.state_dict().values(), strict=True)))
    x = torch.linspace(0, 1, 33, dtype=torch.float64)[:, None].requires_grad_()
    gradient = parameter_gradient(poisson.loss(net, x), net)
    for other in (theirs, net.to_sequential()):
        assert_close(poisson.residual(net, x), poisson.residual(other, x))
        assert_close(gradient, parameter_gradient(poisson.loss(other, x), other))


def test_the_slope_is_that_of_the_formula(siren):
    # f = Σₖ aₖ sin(ω(wₖ·x + bₖ)) + c has ∇f = Σₖ aₖ ω cos(ω(wₖ·x + bₖ)) wₖ.
    net = MLP([2, 7, 1], activations.sin(30.0), dtype=torch.float64)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    first, last = net.layers
    formula = (last.weight * 30 * torch.cos(30 * (x @ first.weight.T + first.bias))) @ first.weight
    f, df = siren.field(net, x)
    assert_close(f, net(x)[:, 0], 0)
    assert_close(df, formula)
    assert_close(siren.eikonal(df), ((formula**2).sum(1).sqrt() - 1).abs())
    # The bias of the last layer is not in the slope.
    parameters = first.weight, first.bias, last.weight
    ours, theirs = (torch.autograd.grad(siren.eikonal(slope).mean(), parameters) for slope in (df, formula))
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)


def test_the_siren_gradients_are_those_of_torchs_layers(siren):
    class Sin(nn.Module):
        def __init__(self, omega):
            super().__init__()
            self.omega = omega

        def forward(self, z):
            return torch.sin(self.omega * z)

    net = siren.siren(16, dtype=torch.float64)
    linears = [nn.Linear(2, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 1)]
    theirs = nn.Sequential(linears[0], Sin(10), linears[1], Sin(30), linears[2], Sin(30), linears[3]).double()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), net.state_dict().values(), strict=True)))
    points, normals, box = (t.double() for t in siren.sample(9, "cpu"))
    gradient = parameter_gradient(siren.loss(net, points, normals, box), net)
    for other in (theirs, net.to_sequential()):
        assert_close(siren.field(net, box.requires_grad_())[1], siren.field(other, box)[1])
        assert_close(gradient, parameter_gradient(siren.loss(other, points, normals, box), other))


def test_a_true_distance_has_no_eikonal_loss_and_the_right_terms(siren):
    def circle(x):
        return x.norm(dim=-1, keepdim=True) - 0.6

    theta = torch.linspace(0, 6, 20, dtype=torch.float64)
    normals = torch.stack([theta.cos(), theta.sin()], -1)
    far = 0.1 * normals
    # Everything but exp(−100 |f|) is zero, and that is e⁻⁵⁰ half a unit from the circle.
    assert siren.loss(circle, 0.6 * normals, normals, far) < 1e-9
    # f = 0.1, ∇f = 0 at a normal of length 1, exp(−100 · 0.1): each term stands with its weight.
    flat = siren.loss(lambda x: 0 * x[:, :1] + 0.1 + x[:, 1:], 0 * normals, 0 * normals, 0 * far)
    expected = 3e3 * 0.1 + 1e2 * 1 + 1e2 * math.exp(-10) + 0
    assert_close(flat, torch.tensor(expected, dtype=torch.float64))


def test_the_siren_starts_as_its_paper_has_it(siren):
    net = siren.siren(256)
    for i, layer in enumerate(net.layers):
        bound = 1 / 2 if i == 0 else math.sqrt(6 / 256) / 30
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert abs(layer.weight.std().item() - bound / math.sqrt(3)) < 0.1 * bound


def test_normals_are_unit_outward_and_square_to_the_boundary(siren):
    theta = torch.linspace(0, 6, 50, dtype=torch.float64)
    points, normals = siren.boundary(theta)
    tangents = (siren.boundary(theta + 1e-6)[0] - siren.boundary(theta - 1e-6)[0]) / 2e-6
    assert_close((tangents * normals).sum(-1), torch.zeros(50, dtype=torch.float64))
    assert_close(normals.norm(dim=-1), torch.ones(50, dtype=torch.float64))
    for step in (-0.02, 0.02):
        expected = torch.full((50,), step, dtype=torch.float64)
        assert (siren.true_distance(points + step * normals) - expected).abs().max() < 1e-4
    assert siren.true_distance(torch.zeros(1, 2)).item() == pytest.approx(-0.45, abs=1e-3)


@every_script
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--steps", "0"], "got 0"),
        (["--steps", "many"], "--steps"),
        (["--seed", "-1"], "expected --seed to be in [0, 2^64), got -1"),
        (["--picture", "no/such/folder.png"], "--picture to be a .png file in an existing folder, got no/such/folder"),
        (["--picture", "picture.txt"], "got picture.txt"),
        (["--device", "tpu"], "cuda"),
        (["--nonsense", "1"], "--nonsense"),
    ],
)
def test_bad_flags_are_one_line_with_status_2(main, tmp_path, script, flags, expected):
    status, out, err = main(script, *flags)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@every_script
def test_what_is_missing_is_said_before_training(main, monkeypatch, script):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(script, "--device", "cuda")[::2] == (2, "error: expected a CUDA device for --device cuda, got none\n")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    status, _, err = main(script)
    assert status == 2
    assert err == "error: expected matplotlib, for the picture, got none: pip install '.[examples]'\n"


def test_a_missing_transformers_is_said_before_training(main, monkeypatch):
    pytest.importorskip("matplotlib")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name))
    status, out, err = main(LLAMA)
    assert (status, out) == (2, "")
    assert err == "error: expected transformers, for the model, got none: pip install '.[examples]'\n"


@every_script
def test_a_script_says_how_it_is_run_on_either_device(script):
    command = f"    python examples/{script.name}\n"
    assert command + command.replace("\n", " --device cuda\n") in load(script).__doc__


@every_script
def test_the_picture_in_the_repository_is_whole_and_small(script):
    pytest.importorskip("matplotlib")
    assert_is_a_picture(script.with_suffix(".png"))
    assert script.with_suffix(".png").stat().st_size < 150_000
