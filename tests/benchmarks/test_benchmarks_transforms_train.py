import json
import re
import shutil

import pytest
import torch
from torch import nn

from benchmarks import train, transforms
from benchmarks.__main__ import main
from benchmarks.layers import BASELINE, OURS
from benchmarks.network import providers
from benchmarks.network.cases import Case
from briefly import BRIEF

pytestmark = pytest.mark.usefixtures("brief")

CPU = torch.device("cpu")
COMPILER = shutil.which("g++") or shutil.which("clang++")
INTERPRETED = [name for name in transforms.TRANSFORMS if name != "compile"]


@pytest.fixture
def rows(tmp_path):
    """Run a command briefly; return its rows."""

    def of(command: str, *arguments: str, status: int = 0) -> list[dict]:
        assert main([command, *BRIEF[:-2], "--json", "--results", str(tmp_path), *arguments]) == status
        (path,) = tmp_path.glob("*.json")
        return json.loads(path.read_text())[command]["rows"]

    return of


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.parametrize("name", INTERPRETED)
@pytest.mark.parametrize("sizes", [(5, 4), (5, 7, 3)])
def test_both_providers_find_the_same_under_every_transform(name, sizes):
    mlp, x = transforms.Case(name, sizes, "tanh").tensors(CPU, torch.float64)
    of = {who: transforms.TRANSFORMS[name](make(mlp), x)() for who, make in transforms.PROVIDERS.items()}
    assert len(of[BASELINE]) == len(of[OURS])
    for theirs, ours in zip(of[BASELINE], of[OURS], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_the_transforms_find_what_their_names_say():
    linear = nn.Linear(3, 2).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    (jacobian,) = transforms.TRANSFORMS["jacrev"](linear, x)()
    torch.testing.assert_close(jacobian, linear.weight.detach().expand(4, 2, 3))
    _, along = transforms.TRANSFORMS["jvp"](linear, x)()
    torch.testing.assert_close(along, x.sum(1, keepdim=True) + 1 + linear.weight.detach().sum(1).expand(4, 2))
    each, whole = (transforms.TRANSFORMS[name](linear, x)() for name in ("per-sample", "grad"))
    torch.testing.assert_close(each[0].mean(0), whole[0])
    assert len(transforms.TRANSFORMS["hessian"](linear, x)()) == 4
    torch.testing.assert_close(transforms.TRANSFORMS["checkpoint"](linear, x)(), whole)


def test_every_transform_row_is_right_and_documented(rows, capsys):
    found = rows("transforms", "--transform", *INTERPRETED, "--activation", "gelu", "--dtype", "float64")
    documented = set(re.findall(r"\w+(?:-\w+)?", transforms.__doc__))
    assert [row["case"] for row in found] == [n for n in INTERPRETED for _ in range(1 if n == "hessian" else 2)]
    for row in found:
        assert row.keys() | {row["case"]} <= documented
        assert list(row["providers"]) == [BASELINE, OURS]
        for provider in row["providers"].values():
            assert provider.keys() <= documented
            assert provider["error"]["result"] < 1e-11
            assert provider["wrong"] is False
    assert "torch/ours [95 %]" in capsys.readouterr().out


@pytest.mark.skipif(COMPILER is None, reason="inductor needs a C++ compiler")
def test_a_compiled_layer_gives_the_same_gradients():
    mlp, x = transforms.Case("compile", (5, 4), "tanh").tensors(CPU, torch.float64)
    eager = transforms.TRANSFORMS["checkpoint"](mlp, x)()
    torch.testing.assert_close(transforms.TRANSFORMS["compile"](mlp, x)(), eager)
    torch.compiler.reset()


def test_a_wrong_transform_is_marked_and_fails_the_command(rows, monkeypatch, capsys):
    def scaled(mlp):
        return nn.Sequential(mlp.to_sequential(), nn.Threshold(0.0, 0.01))

    monkeypatch.setitem(transforms.PROVIDERS, OURS, scaled)
    rows("transforms", "--transform", "grad", "--activation", "tanh", status=1)
    assert f"WRONG {OURS}" in capsys.readouterr().out


def test_a_transform_that_does_not_run_is_left_out_in_one_line(rows, monkeypatch, capsys):
    def no_compiler(module, x):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setitem(transforms.TRANSFORMS, "compile", no_compiler)
    found = rows("transforms", "--transform", "compile", "grad", "--activation", "tanh")
    assert {row["case"] for row in found} == {"grad"}
    assert "left out: compile (no C++ compiler)\n" in capsys.readouterr().out


TRAINED = ["--case", "5-7-4x9-cross_entropy", "5-7-4x9-tanh"]


def test_every_training_row_is_right_and_documented(rows, monkeypatch, capsys):
    monkeypatch.setattr(train, "STEPS", 5)
    found = rows("train", *TRAINED)
    documented = set(re.findall(r"\w+", train.__doc__))
    assert [row["optimiser"] for row in found] == ["AdamW", "SGD"] * 2
    for row in found:
        assert row.keys() <= documented
        assert list(row["providers"]) == [BASELINE, OURS, providers.AUTOGRAD]
        for provider in row["providers"].values():
            assert provider.keys() <= documented
            assert provider["loss_difference_float64"] < 1e-9
            assert provider["loss_difference"] < 1e-4
            assert provider["steps_per_second"] == pytest.approx(1e6 / provider["median_us"], rel=1e-3)
    assert "torch/manual_mlp [95 %]" in capsys.readouterr().out


@pytest.mark.parametrize("optimiser", train.OPTIMISERS)
def test_training_lowers_the_loss_and_uses_every_batch(optimiser):
    losses = train.losses(OURS, Case((5, 16, 4), 4, "tanh", "cross_entropy"), optimiser, CPU, 400)
    assert len(set(losses[: train.BATCHES].tolist())) == train.BATCHES
    assert losses[-train.BATCHES :].mean() < 0.9 * losses[: train.BATCHES].mean()


def test_training_with_a_wrong_gradient_is_marked_and_fails_the_command(rows, monkeypatch, capsys):
    monkeypatch.setattr(train, "STEPS", 5)

    def forgetful(problem, tile_rows=None):
        step = providers.by_autograd(problem, providers.GRAPHS[BASELINE](problem))

        def wrong():
            loss = step()
            problem.mlp.layers[0].bias.grad.zero_()
            return loss

        return wrong

    monkeypatch.setitem(providers.STEPS, OURS, forgetful)
    found = rows("train", *TRAINED[:2], "--optimiser", "SGD", status=1)
    assert [name for name, p in found[0]["providers"].items() if p["wrong"]] == [OURS]
    assert f"WRONG {OURS}" in capsys.readouterr().out
