"""The explanation of a trained layer that looks at a real image."""

import sys
from pathlib import Path

import pytest
import torch

from faces import tree
from manual_mlp import losses
from manual_mlp.explain.steps.digit import trained_picture

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
    from manual_mlp.explain.blocks import Table, Tiles
    from manual_mlp.explain.steps.digit import digit, trained_picture
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
    table = next(block for block in step.blocks if isinstance(block, Table))
    units = [int(line[0].split()[1]) - bool(hidden) for line in table.rows]
    pictures = [block for block in step.blocks if isinstance(block, Tiles)]
    assert len(pictures) == 3
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
    assert len(section.findall(".//figure")) == 3
    assert "of the run a `run` <of> W & H." in " ".join("".join(section.find("p").itertext()).split())


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
    assert "manual_mlp[train]" in err
    assert err.count("\n") == 1


def test_no_words_are_said_twice(run):
    _, out, _ = run()
    assert "right answer of the right answer" not in " ".join(out.split())
