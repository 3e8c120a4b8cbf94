"""The explanation of a trained layer that looks at a real image."""

# The index l is the textbook's.
# ruff: noqa: E741
import math
import sys
from pathlib import Path

import pytest
import torch

from faces import tree
from manual_mlp import Activation, activations, losses
from manual_mlp.explain.blocks import Check, Heading, Tiles
from manual_mlp.explain.formulas import MISTAKES
from manual_mlp.explain.steps.digit import Picture, digit, embedded_picture, trained_picture
from shown import LOSSES, tables, value, words, wrong

# A trained layer and a real image.


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    pytest.importorskip("safetensors")
    from manual_mlp.training.data import load

    return load("digits", Path("unused"), torch.device("cpu"))


@pytest.fixture
def trained(digits, tmp_path_factory):
    """Train a few steps and write the folder of a run, as train.py does."""

    def write(hidden, activation="relu", loss="cross-entropy", name="run", without=(), settings=()):
        from safetensors.torch import save_file

        from manual_mlp.modules import MLP
        from manual_mlp.training import checkpoint, state
        from manual_mlp.training.config import Config

        folder = tmp_path_factory.mktemp("runs") / name
        folder.mkdir()
        config = Config(dataset="digits", hidden=hidden, activation=activation, loss=loss, dropout=0.1)
        values = {**checkpoint.settings(config, digits), **dict(settings)}
        torch.manual_seed(0)
        model = MLP(values["sizes"], activation, dropout=0.1)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(15):
            optimizer.zero_grad()
            if values["sizes"] == [64, *hidden, 10]:
                torch.nn.functional.cross_entropy(model(digits.train.images), digits.train.labels).backward()
                optimizer.step()
        checkpoint.save_settings(folder, {key: value for key, value in values.items() if key not in without})
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / state.LAST)
        return folder

    return write


def image_of(digits, digit):
    found = digits.validation.images[digits.validation.labels == digit][0]
    return found.double().view(8, 8)


@pytest.mark.parametrize("loss", losses.flags())
@pytest.mark.parametrize(("hidden", "activation"), [((), "relu"), ((12,), "relu"), ((12, 11), "gelu")])
def test_a_trained_network_looks_at_a_real_image(run, trained, digits, hidden, activation, loss):
    from manual_mlp.training.checkpoint import load_model

    folder = trained(hidden, activation, loss)
    status, out, err = run("--checkpoint", folder, "--digit", "3")
    assert (status, err) == (0, "")
    words = " ".join(out.split())
    sizes = "-".join(map(str, (64, *hidden, 10)))
    assert f"an image of digits, normalised, before the {sizes} network of the run run" in words
    assert "The right answer is 3." in words

    step = digit(trained_picture(folder, 3))
    assert not step.failed
    image = next(block for block in step.blocks if isinstance(block, Tiles)).parts[0].values
    torch.testing.assert_close(image, image_of(digits, 3))
    # Against autograd through the model itself.
    model = load_model(folder).double()
    y, one_hot = model(image.reshape(1, -1)), torch.eye(10, dtype=torch.float64)[3:4]
    losses.Criterion(losses.by_flag(loss), one_hot, "sum", {}).torchs(y).backward()
    first = next(model.parameters())
    table = [table for table in tables(step) if table.header[0] == ("unit" if hidden else "output")][-1]
    units = [int(line[0].split()[1]) - bool(hidden) for line in table.rows]
    pictures = [block for block in step.blocks if isinstance(block, Tiles)]
    assert len(pictures) == 4
    for unit, update, weights in zip(units, pictures[1].parts, pictures[2].parts, strict=True):
        torch.testing.assert_close(update.values.flatten(), -first.grad[unit], rtol=0, atol=1e-12)
        torch.testing.assert_close(weights.values.flatten(), first.detach()[unit])


def test_of_a_squared_error_an_output_is_not_called_a_share(run, trained):
    _, out, _ = run("--checkpoint", trained((), loss="squared-error"))
    words = " ".join(out.split())
    assert "share that the network gives" not in words
    assert "the right answer's output goes from" in words


def test_the_page_of_a_trained_network_shows_the_run_whatever_it_is_called(run, trained, tmp_path):
    folder = trained((12,), name="a `run` <of> W & H")
    assert run("--checkpoint", folder, "--html", "page.html")[0] == 0
    section = tree((tmp_path / "page.html").read_text("utf-8")).find(".//section[@id='step-12']")
    assert len(section.findall(".//figure")) == 4
    assert "of the run a `run` <of> W & H." in " ".join("".join(section.find(".//p").itertext()).split())


def test_the_image_is_normalised_as_the_run_says(trained, digits):
    raw = trained_picture(trained((12,), settings={"mean": 0.0, "std": 1.0}), 7)
    assert "normalised" not in raw.source
    assert raw.image.min() == 0
    other = trained_picture(trained((12,), settings={"mean": 0.25, "std": 0.5}), 7)
    assert "normalised" in other.source
    assert torch.allclose(other.image, (raw.image - 0.25) / 0.5)
    assert torch.allclose(image_of(digits, 7), (raw.image - digits.mean) / digits.std, atol=1e-6)


@pytest.mark.parametrize(
    ("without", "settings"),
    [
        (("loss",), {}),
        (("data_dir",), {}),
        (("dataset",), {}),
        ((), {"dataset": "cifar"}),
        ((), {"loss": "hinge"}),
        ((), {"sizes": [32, 12, 10]}),
        ((), {"sizes": [64, 12, 5]}),
    ],
)
def test_a_damaged_run_is_one_line_with_status_2(run, trained, without, settings):
    folder = trained((12,), without=without, settings=settings)
    status, out, err = run("--checkpoint", folder, "--digit", "9")
    assert (status, out) == (2, "")
    assert err.startswith("error: expected ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("file", ["config.json", "last.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\xff\xfe", None])
def test_a_file_of_a_run_that_is_damaged_is_one_line_with_status_2(run, trained, file, content):
    path = trained((12,)) / file
    path.unlink() if content is None else path.write_bytes(content)
    status, out, err = run("--checkpoint", path.parent)
    assert (status, out) == (2, "")
    what = "weights of a run in" if file.startswith("last") else "folder of a run of train.py, got"
    assert err.startswith(f"error: expected the {what} {path if file.startswith('last') else path.parent}")
    assert err.count("\n") == 1


def test_without_the_extra_it_says_how_to_install_it(run, trained, monkeypatch):
    folder = trained((12,))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    status, out, err = run("--checkpoint", folder)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert ".[train]" in err
    assert err.count("\n") == 1


def test_no_words_are_said_twice(run):
    _, out, _ = run()
    assert "right answer of the right answer" not in " ".join(out.split())


# A trained layer, walked: δ from the outputs down, and the weights that move most.


def made(sizes=(12, 7, 5, 4), activation="tanh", loss="cross-entropy", label=2, side=3, seed=0):
    """A network of any sizes that looks at a random image, as if it were trained."""
    draw = torch.Generator().manual_seed(seed)
    fs = [*[activations.get(activation)] * (len(sizes) - 2), activations.get(None)]
    layers = tuple(
        (
            torch.randn(a, b, generator=draw, dtype=torch.float64) / a**0.5,
            torch.randn(b, generator=draw, dtype=torch.float64),
            f,
        )
        for a, b, f in zip(sizes, sizes[1:], fs, strict=False)
    )
    image = torch.randn(side, sizes[0] // side, generator=draw, dtype=torch.float64)
    return Picture(image, label, layers, loss, "made", trained=True)


def slopes(picture):
    """By autograd alone: ∂J/∂Y of the top, and of each layer its f′(Z), ∂J/∂H of what it makes, δ, H and ∂J/∂W."""
    h, leaves, found = picture.image.reshape(-1), [], []
    for w, b, f in picture.layers:
        w = w.clone().requires_grad_()
        z = h @ w + b
        y = f.f(z)
        leaves.append((h, w, z, y))
        h = y
    target = torch.nn.functional.one_hot(torch.tensor([picture.label]), len(h)).double()
    j = losses.Criterion(losses.by_flag(picture.loss), target, "sum", {}).torchs(h[None])
    for h, w, z, y in leaves:
        slope = torch.autograd.grad(y.sum(), z, retain_graph=True)[0]
        dw, delta, dy = torch.autograd.grad(j, (w, z, y), retain_graph=True)
        found.append({"h": h.tolist(), "f′": slope.tolist(), "dy": dy.tolist(), "delta": delta.tolist(), "dw": dw})
    return leaves[-1][-1].tolist(), found


def near(text, want):
    """Whether a number is written as it is: 4 decimals, or 3 digits of a small one."""
    assert value(text) == pytest.approx(want, rel=5e-3, abs=6e-5)


def walked(picture):
    step = digit(picture)
    assert not step.failed
    return step, {table.header[0]: table for table in tables(step)}


@pytest.mark.parametrize("loss", LOSSES)
def test_delta_of_each_output_stands_beside_what_the_network_says_of_it(loss):
    picture = made(loss=loss)
    step, found = walked(picture)
    y, layers = slopes(picture)
    says = {
        "cross-entropy": lambda i: math.exp(y[i]) / math.fsum(map(math.exp, y)),
        "binary-cross-entropy": lambda i: 1 / (1 + math.exp(-y[i])),
        "squared-error": lambda i: y[i],
    }[loss]
    table = found["class"]
    assert table.header == ("class", "output", *(["share"] if loss != "squared-error" else []), "δ")
    assert [line[0] for line in table.rows] == [f"class {i}" for i in range(4)]
    for i, line in enumerate(table.rows):
        near(line[1], y[i])
        near(line[-2], says(i))
        near(line[-1], says(i) - (i == 2))
        near(line[-1], layers[-1]["delta"][i])
    assert f"`Y*` is 1 for class {picture.label}" in words(step)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_delta_of_each_hidden_layer_is_what_comes_from_above_times_its_own_slope(activation):
    picture = made(activation=activation)
    step, _ = walked(picture)
    _, layers = slopes(picture)
    hidden = [table for table in tables(step) if table.header == ("unit", "δWᵀ", "f′(Z)", "δ")]
    # From the top down.
    for table, layer, (w, _, _), above in zip(
        hidden, layers[1::-1], (picture.layers[2], picture.layers[1]), layers[:0:-1], strict=True
    ):
        assert [line[0] for line in table.rows] == [f"unit {k + 1}" for k in range(len(w))]
        for k, line in enumerate(table.rows):
            comes = math.fsum(d * weight for d, weight in zip(above["delta"], w[k].tolist(), strict=True))
            near(line[1], comes)
            near(line[1], layer["dy"][k])
            near(line[2], layer["f′"][k])
            near(line[3], comes * layer["f′"][k])
            near(line[3], layer["delta"][k])
    assert [check.name for check in step.checks[:3]] == [
        "δ of the outputs = ∂J/∂Z",
        "δ of hidden layer 2 = ∂J/∂Z",
        "δ of hidden layer 1 = ∂J/∂Z",
    ]


def test_of_many_units_those_of_the_largest_delta_are_shown_in_their_order():
    picture = made((12, 40, 4))
    step, found = walked(picture)
    delta = slopes(picture)[1][0]["delta"]
    largest = sorted(sorted(range(40), key=lambda k: -abs(delta[k]))[:10])
    assert [line[0] for line in found["unit"].rows] == [f"unit {k + 1}" for k in largest]
    assert "The hidden layer has 40 units. Here are the 10 of 40 for which `|δ|` is largest." in words(step)


@pytest.mark.parametrize("sizes", [(12, 7, 5, 4), (12, 7, 4), (12, 4)])
def test_the_ten_weights_that_move_most_are_the_largest_of_all_products(sizes):
    picture = made(sizes)
    _, found = walked(picture)
    _, layers = slopes(picture)
    rate = 1 / (1 + math.fsum(x * x for x in picture.image.flatten().tolist()))
    deep = len(sizes) > 2

    def of_pixel(k):
        return f"({k // 4 + 1}, {k % 4 + 1})"

    def names(last):
        return (lambda l: f"class {l}") if last else (lambda l: f"unit {l + 1}")

    expected = [(f"pixel (row, column) → {'unit' if deep else 'class'}", layers[0], of_pixel, names(not deep), 0)]
    expected += [("unit → class", layers[-1], lambda k: f"unit {k + 1}", names(True), -1)] * deep
    assert ("unit → class" in found) == deep
    for title, layer, of, to, at in expected:
        w = picture.layers[at][0].tolist()
        every = [
            (abs(h * d), h, d, w[k][l], f"{of(k)} → {to(l)}")
            for k, h in enumerate(layer["h"])
            for l, d in enumerate(layer["delta"])
        ]
        table = found[title]
        assert table.header[1:] == ("Hₖ", "δₗ", "−η Hₖ δₗ", "Wₖₗ before")
        assert len(table.rows) == 10
        for line, (_, h, d, before, name) in zip(table.rows, sorted(every, reverse=True), strict=False):
            assert line[0] == name
            for text, want in zip(line[1:], (h, d, -rate * h * d, before), strict=True):
                near(text, want)


def test_equal_pixels_come_in_the_order_of_reading():
    picture = made((12, 7, 4))
    flat = Picture(torch.ones(3, 4, dtype=torch.float64), 2, picture.layers, picture.loss, "flat", trained=True)
    _, found = walked(flat)
    places = [line[0].split(" → ")[0] for line in found["pixel (row, column) → unit"].rows]
    assert places == [f"({k // 4 + 1}, {k % 4 + 1})" for k in range(10)]


@pytest.mark.parametrize("sizes", [(12, 7, 5, 4), (12, 4)])
def test_a_picture_shows_how_much_the_weights_of_each_pixel_move(sizes):
    picture = made(sizes)
    step, _ = walked(picture)
    dw = slopes(picture)[1][0]["dw"].tolist()
    (tile,) = [block for block in step.blocks if isinstance(block, Tiles)][-1].parts
    lengths = [math.sqrt(math.fsum(d * d for d in row)) for row in dw]
    assert tile.values.shape == picture.image.shape
    assert tile.values.flatten().tolist() == pytest.approx(lengths, abs=1e-12)
    said = words(step)
    assert said.count("A weight moves much where its input is large and its output erred") == 1


@pytest.mark.parametrize("field", ["cost_gradient", "delta", "weight", "bias", "input"])
def test_a_formula_a_thousandth_off_turns_a_trained_network_red(field):
    failed = {check.name for check in digit(made(), wrong(field)).failed}
    down = ["δ of the outputs = ∂J/∂Z", "δ of hidden layer 2 = ∂J/∂Z", "δ of hidden layer 1 = ∂J/∂Z", "δ = ∂J/∂B"]
    of_weights = {"Hᵀδ of the last layer = ∂J/∂W", "Hᵀδ for the image = ∂J/∂W"}
    of_weights |= {"⟨Hᵀδ, update⟩ = the slope of J along the update"}
    assert (
        failed
        == {
            "cost_gradient": {*down, *of_weights},
            "delta": {*down, *of_weights},
            "weight": of_weights,
            "bias": {"δ = ∂J/∂B"},
            # What is passed down is wrong, and the outputs are right.
            "input": {*down[1:], *of_weights} - {"Hᵀδ of the last layer = ∂J/∂W"},
        }[field]
    )


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_trained_network_is_shown_and_caught(name):
    step = digit(made(), MISTAKES[name].formulas)
    # These change nothing where there is one row, or are not of this step.
    harmless = {"mean-for-sum", "bias-not-summed", "convention-swapped"}
    assert bool(step.failed) == (name not in harmless)
    assert isinstance(step.blocks[-1], Check)
    rows = [cell for table in tables(step) for line in table.rows for cell in line]
    assert "nan" not in " ".join(rows)
    assert len([table for table in tables(step) if table.header[0] == "unit"]) == 2


def test_a_slope_that_is_wrong_in_a_hidden_layer_turns_that_layer_red():
    tanh, picture = activations.get("tanh"), made()
    crooked = Activation(torch.tanh, lambda z: 1.001 * tanh.df(z), tanh.d2f)
    first, second, last = picture.layers
    wrongly = Picture(picture.image, 2, (first, (*second[:2], crooked), last), picture.loss, "made", trained=True)
    failed = [check.name for check in digit(wrongly).failed]
    assert failed[:2] == ["δ of hidden layer 2 = ∂J/∂Z", "δ of hidden layer 1 = ∂J/∂Z"]


def test_a_layer_that_has_learned_nothing_is_walked_in_short():
    step = digit(embedded_picture())
    assert not any(isinstance(block, Heading) for block in step.blocks)
    assert [table.header for table in tables(step)] == [("output", "δ")]
    assert len(step.checks) == 3


def test_the_command_walks_a_trained_layer_and_its_page_too(run, trained, tmp_path):
    folder = trained((12,))
    said = " ".join(run("--checkpoint", folder)[1].split())
    for sentence in ("δ of the outputs", "δ of the hidden layer", "Which weights move most", "(row, column) → unit"):
        assert sentence in said
    assert run("--checkpoint", folder, "--html", "page.html")[0] == 0
    section = tree((tmp_path / "page.html").read_text("utf-8")).find(".//section[@id='step-12']")
    assert len(section.findall(".//table")) == 4
