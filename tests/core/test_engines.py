"""Who computes is chosen in one place, and what an engine computes is held to the formulas."""

import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from linear_losses import every_reduction
from manual_mlp import engines, linear_cross_entropy
from manual_mlp.engines import KERNELS, PLAIN, Engine, engine_for
from manual_mlp.engines.aten import KernelCrossEntropy
from manual_mlp.formulas.cross_entropy import CrossEntropy

N, V = 13, 7
ON_CUDA = SimpleNamespace(is_cpu=False, is_cuda=True)
DTYPES = torch.float64, torch.float32


def test_a_tensor_on_a_cpu_gets_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(engines.CHOICE, raising=False)
    assert engine_for(torch.empty(1)) is PLAIN
    assert Engine("plain", CrossEntropy, None) == PLAIN
    assert engine_for(ON_CUDA).cross_entropy is KernelCrossEntropy
    assert engine_for(torch.empty(1, device="meta")) is KERNELS


def test_plain_can_be_asked_for_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engines.CHOICE, "plain")
    assert engine_for(ON_CUDA) is PLAIN


def test_an_engine_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engines.CHOICE, "fast")
    with pytest.raises(ValueError, match="expected MANUAL_MLP_ENGINE to be plain, native or unset, got 'fast'"):
        engine_for(ON_CUDA)


WITHOUT_TRITON = {
    "none": "importlib.util.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)",
    "a folder": "importlib.util.find_spec = lambda name, *rest: folder if name == 'triton' else find(name, *rest)",
    "a stub": "sys.modules['triton'] = types.ModuleType('triton')",
}


@pytest.mark.parametrize("what", WITHOUT_TRITON)
def test_without_triton_a_gpu_has_torchs_kernels(what: str) -> None:
    code = f"""
import importlib.machinery, importlib.util, sys, types
import torch
find, folder = importlib.util.find_spec, importlib.machinery.ModuleSpec("triton", None, is_package=True)
{WITHOUT_TRITON[what]}
from manual_mlp.engines import KERNELS, engine_for
assert engine_for(types.SimpleNamespace(is_cpu=False, is_cuda=True)) is KERNELS
"""
    environment = {name: value for name, value in os.environ.items() if name != engines.CHOICE}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


# What each entry of an engine computes and what the formulas compute: both of the dtype at hand.
Compared = Callable[[torch.dtype], tuple[list[Tensor], list[Tensor]]]


def losses(kind: str, reduction: str, epsilon: float, weighted: bool) -> Compared:
    def compared(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        z = torch.linspace(-9, 9, N * V).sin().mul(4).view(N, V).to(dtype)
        weight = torch.linspace(0.5, 2, V).to(dtype) if weighted else None
        t = torch.arange(N) % V if kind == "classes" else torch.linspace(0, 1, N * V).view(N, V).to(dtype)
        if kind == "classes":
            t[3] = 1
        g = torch.linspace(-1, 2, N).to(dtype)
        found = []
        for of in (KernelCrossEntropy, CrossEntropy):
            loss = of(t, weight, 1 if kind == "classes" else -100, epsilon)
            whole = z.clone()
            if reduction == "none":
                found.append(list(loss.weighted(whole, slice(None), g)))
            elif reduction == "tile":
                found.append(list(loss.summed(whole, slice(None))))
            else:
                found.append(list(loss.reduced(whole, reduction == "mean", None)))
        return found[0], found[1]

    return compared


HELD = {
    **{
        f"cross_entropy of {kind}, {reduction}, smoothed by {epsilon}{', weighted' * weighted}": losses(
            kind, reduction, epsilon, weighted
        )
        for kind in ("classes", "probabilities")
        for reduction in ("none", "tile", "sum", "mean")
        for epsilon in (0.0, 0.2)
        for weighted in (False, True)
    },
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("of", HELD)
def test_what_an_engine_computes_is_as_exact_as_the_formulas(of: str, dtype: torch.dtype) -> None:
    _, truth = HELD[of](torch.float64)
    mine, plain = HELD[of](dtype)
    for engine, formula, exact in zip(mine, plain, truth, strict=True):
        errors = [(t.double() - exact.double()).abs().max() for t in (engine, formula)]
        assert errors[0] <= 2 * errors[1] + 1e-6 * exact.abs().max(), errors


def test_every_entry_of_an_engine_is_held_to_a_formula() -> None:
    # That of drop runs where Triton's interpreter does: test_dropout.py.
    assert {of.split()[0] for of in HELD} | {"name", "drop"} == set(Engine._fields)


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}, {"row_weight": True}, {"softcap": 1.5}], ids=str)
@pytest.mark.parametrize("chunk_rows", [4, 99])
@every_reduction
def test_an_engine_takes_the_options_of_a_cross_entropy_and_sees_its_rows(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], chunk_rows: int, reduction: str
) -> None:
    h, w = torch.randn(N, 3, dtype=torch.float64), torch.randn(V, 3, dtype=torch.float64, requires_grad=True)
    t, found = torch.arange(N) % V, []
    given = (
        options
        | {"reduction": reduction}
        | ({"row_weight": torch.linspace(0, 1, N)} if "row_weight" in options else {})
    )
    monkeypatch.setattr("manual_mlp.engines.native.doors", None)
    for engine in (Engine("on a GPU", KernelCrossEntropy), PLAIN):
        monkeypatch.setattr("manual_mlp.losses.engine_for", lambda _, engine=engine: engine)
        loss, seen = linear_cross_entropy(h, w, t, return_stats=True, chunk_rows=chunk_rows, **given)
        found.append((loss, *torch.autograd.grad(loss.sum(), w), *seen))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    z = F.linear(h, w).detach()
    kernels = KernelCrossEntropy(t, None, -100, 0.0, given.get("row_weight"), given.get("z_loss", 0.0))
    kernels.reduced(z, True, None)
    kernels.weighted(z, slice(None), torch.ones(N))
    for need_dy in (True, False):
        kernels.values(z, slice(None), need_dy)
    assert torch.equal(z, F.linear(h, w)), "the logits are spared"
    capped = options["softcap"] * torch.tanh(z / options["softcap"]) if "softcap" in options else z
    torch.testing.assert_close(found[0][2], capped.logsumexp(-1), rtol=1e-12, atol=1e-12)
