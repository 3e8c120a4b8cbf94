"""A terminal to read in, the command, and the page and the steps of the default numbers."""

import math

import pytest
import torch

import reference
from faces import Parsed
from manual_mlp.__main__ import main
from manual_mlp.explain import draw_network, explain


@pytest.fixture(autouse=True)
def _a_reader(monkeypatch):
    """A terminal of 80 columns; the threads of torch are given back."""
    for name in ("NO_COLOR", "MANUAL_MLP_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the command in an empty folder: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*options):
        try:
            status = main(["explain", *map(str, options)])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The page of the default numbers, as the command writes it."""
    path = tmp_path_factory.mktemp("page") / "explained.html"
    assert main(["explain", "--html", str(path)]) == 0
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def parsed(written):
    return Parsed(written)


@pytest.fixture(scope="session")
def net():
    return draw_network()


@pytest.fixture(scope="session")
def steps(net):
    return explain(net)


@pytest.fixture(scope="session")
def truth(net):
    """The textbook's sums over indices: Z, Y, dY, δ and the gradients, row by row."""
    f = reference.ACTIVATIONS["sigmoid"]()
    X, V, C, W, B, T = (t.tolist() for t in (net.x, net.v, net.c, net.w, net.b, net.target))
    H = [reference.row_forward(x, V, C, f) for x in X]
    Z = [reference.row_z(h, W, B) for h in H]
    Y = [reference.row_forward(h, W, B, f) for h in H]
    dY = [reference.dJ_dY(y, t) for y, t in zip(Y, T, strict=True)]
    rows = [reference.row_backward(h, W, B, dy, f) for h, dy in zip(H, dY, strict=True)]
    hidden = [reference.row_backward(x, V, C, row.dH, f) for x, row in zip(X, rows, strict=True)]
    found = {"f": f, "H": H, "W": W, "B": B, "T": T, "Z": Z, "Y": Y, "dY": dY, "rows": rows, "hidden": hidden}
    return {**found, "delta": [row.dB for row in rows]}


@pytest.fixture(scope="session")
def row(net, truth):
    """The row that steps 0, 3, 4 and 9 look at: the one with most to show."""
    sizes = [math.fsum(map(abs, h)) * math.fsum(map(abs, d)) for h, d in zip(truth["H"], truth["delta"], strict=True)]
    return sizes.index(max(sizes))
