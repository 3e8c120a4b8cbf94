"""The scripts of examples/, and what their tests compare with."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import torch

FOLDER = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
ENSEMBLE, FIELD, POISSON, SIREN, THOUSAND, LLAMA = (
    FOLDER / f"{name}.py"
    for name in ("ensemble_func", "neural_field", "poisson_pinn", "siren_sdf", "thousand_mlps", "transformers_head")
)


def load(script):
    return SimpleNamespace(**runpy.run_path(str(script)))


def parameter_gradient(j, net):
    return torch.cat([g.flatten() for g in torch.autograd.grad(j, list(net.parameters()))])


def assert_close(ours, theirs, tolerance=1e-9):
    assert (ours - theirs).abs().max() <= tolerance * (1 + theirs.abs().max())
