"""A run, read back in Python and from each file that `python -m manual_mlp export` writes."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

from safetensors.torch import save_file

from manual_mlp import MLP, activations
from manual_mlp.__main__ import main
from manual_mlp.training import checkpoint, load_run
from manual_mlp.training.sources import open_source
from patience import SECONDS
from runs import reader

ROOT = Path(__file__).parents[2]
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "sequential": ".pt"}
MEAN, STD = 0.3, 0.4
# Each activation of the catalogue once, after a hidden layer or after the last one.
NAMES = activations.names()
PAIRS = [(NAMES[i], NAMES[i - 1]) for i in range(0, len(NAMES), 2)]

needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="needs the onnx packages"
)
FORMATS = [pytest.param(name, marks=needs_onnx) if name == "onnx" else name for name in SUFFIXES]


@pytest.fixture(scope="module")
def digits():
    """Read real images, as they are: pixels in [0, 1] (N, 64), and labels."""
    images, labels = open_source("digits", Path("unused")).read_test()
    return images.flatten(1), labels


def write_run(folder, activation="relu", output_activation="identity", hidden=(32, 17), dropout=0.5):
    """Write what train.py does of a network, here with random weights: last and best ones that differ."""
    folder.mkdir(exist_ok=True)
    sizes = [64, *hidden, 10]
    settings = {
        "dataset": "digits",
        "sizes": sizes,
        "activation": activation,
        "output_activation": output_activation,
        "dropout": dropout,
        "mean": MEAN,
        "std": STD,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    for name in ("last", "best"):
        save_file(MLP(sizes, activation).state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "a run")


@pytest.fixture(scope="module")
def trained(train):
    """Train as a user does: the folder, and the accuracy that was printed."""
    flags = "--dataset digits --hidden 32 --epochs 5 --batch-size 32 --activation lecun_tanh --dropout 0.2 --name run"
    assert train(*flags.split())[0] == 0
    return train.at / "run", re.search(r"test accuracy (\S+) %", train.said()).group(1)


def percent(network, images, labels):
    return f"{100 * (network(images).argmax(1) == labels).double().mean().item():.2f}"


def test_a_run_read_back_has_the_accuracy_that_was_printed(trained, digits):
    folder, printed = trained
    assert percent(load_run(folder), *digits) == printed
    assert percent(load_run(str(folder)), *digits) == printed


@pytest.mark.parametrize("to", FORMATS)
def test_an_exported_run_has_the_accuracy_that_was_printed(trained, digits, to, tmp_path):
    folder, printed = trained
    output = tmp_path / f"net{SUFFIXES[to]}"
    assert main(["export", str(folder), "--to", to, "--output", str(output)]) == 0
    assert percent(reader(output), *digits) == printed


@pytest.mark.parametrize("best", [False, True])
def test_a_run_read_back_normalises_pixels_itself(run, digits, best):
    pixels, _ = digits
    expected = checkpoint.load_model(run, best)((pixels - MEAN) / STD)
    torch.testing.assert_close(load_run(run, best)(pixels), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.each_value
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(("hidden", "output"), PAIRS)
def test_every_activation_is_exported(tmp_path, digits, to, hidden, output):
    folder = write_run(tmp_path / "run", hidden, output, hidden=(11,))
    assert main(["export", str(folder), "--to", to]) == 0
    pixels = digits[0]
    expected = checkpoint.load_model(folder)((pixels - MEAN) / STD)
    found = reader(folder / f"model{SUFFIXES[to]}")(pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_takes_any_number_of_images_and_drops_no_unit(run, digits, to):
    main(["export", str(run), "--to", to])
    network, pixels = reader(run / f"model{SUFFIXES[to]}"), digits[0]
    expected = load_run(run)(pixels)
    for count in (1, 2, 7, 299):
        found = network(pixels[:count])
        torch.testing.assert_close(found, expected[:count], atol=1e-5, rtol=1e-5)
        assert torch.equal(found.argmax(1), expected[:count].argmax(1))


@pytest.mark.parametrize("to", FORMATS)
def test_best_exports_the_best_weights(run, digits, to):
    main(["export", str(run), "--to", to, "--best"])
    found = reader(run / f"model{SUFFIXES[to]}")(digits[0])
    torch.testing.assert_close(found, load_run(run, best=True)(digits[0]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, load_run(run)(digits[0]), atol=1e-2)


@pytest.mark.skipif("MANUAL_MLP_DATA" not in os.environ, reason="needs MNIST in MANUAL_MLP_DATA")
@needs_onnx
def test_onnxruntime_classifies_mnist_as_the_run_does(tmp_path):
    folder = write_run(tmp_path / "run", hidden=(128, 64))
    settings = json.loads((folder / "config.json").read_text())
    settings["sizes"] = [784, 128, 64, 10]
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(MLP(settings["sizes"]).state_dict(), folder / "last.safetensors")
    images, _ = open_source("mnist", Path(os.environ["MANUAL_MLP_DATA"])).read_test()
    pixels = images.flatten(1)
    main(["export", str(folder), "--to", "onnx"])
    expected = checkpoint.load_model(folder)((pixels - MEAN) / STD).topk(2).values
    found = reader(folder / "model.onnx")(pixels)
    torch.testing.assert_close(found.topk(2).values, expected, atol=1e-5, rtol=1e-5)
    # Where two classes are not as good as equal, it is the same class.
    clear = expected[:, 0] - expected[:, 1] > 1e-4
    assert clear.sum() > 9900
    assert torch.equal(found.argmax(1)[clear], load_run(folder)(pixels).argmax(1)[clear])


@pytest.mark.parametrize("to", FORMATS)
def test_the_command_says_in_one_line_what_it_wrote_and_how_to_use_it(run, to, capfd):
    assert main(["export", str(run), "--to", to]) == 0
    out, err = capfd.readouterr()
    path = run / f"model{SUFFIXES[to]}"
    assert out.startswith(f"wrote {path}, which takes pixels in [0, 1]: ")
    assert out.count("\n") == 1
    assert out.count(str(path)) == 2
    assert err == ""


@needs_onnx
def test_a_fresh_process_prints_that_line_alone(run):
    command = [sys.executable, "-W", "error", "-m", "manual_mlp", "export", str(run), "--to", "onnx"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


def test_what_the_command_says_about_torch_export_can_be_run(run, digits, capsys):
    main(["export", str(run), "--to", "torch-export"])
    usage = capsys.readouterr().out.partition("[0, 1]: ")[2]
    assert eval(usage, {"torch": torch, "pixels": digits[0]}).shape == (299, 10)


def test_the_files_of_torch_need_no_manual_mlp(tmp_path):
    folder = write_run(tmp_path / "run", "sin", "squared_relu")
    for to in ("torch-export", "sequential"):
        main(["export", str(folder), "--to", to])
    code = (
        "import sys; sys.modules['manual_mlp'] = None; import torch; pixels = torch.zeros(3, 64);"
        "other = torch.export.load('model.pt2').module()(pixels);"
        "saved = torch.load('model.pt', weights_only=True); exec(saved['code']);"
        "model.load_state_dict(saved['state_dict']); torch.testing.assert_close(model(pixels), other)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=SECONDS)


def test_the_code_of_a_sequential_is_what_one_would_write(run):
    main(["export", str(run), "--to", "sequential"])
    saved = torch.load(run / "model.pt", weights_only=True)
    lines = saved["code"].splitlines()
    assert lines[0] == "from torch import nn"
    assert [line.strip() for line in lines[lines.index("model = nn.Sequential(") + 1 :]] == [
        "nn.Linear(in_features=64, out_features=32, bias=True),",
        "nn.ReLU(),",
        "nn.Linear(in_features=32, out_features=17, bias=True),",
        "nn.ReLU(),",
        "nn.Linear(in_features=17, out_features=10, bias=True),",
        ")",
    ]


@needs_onnx
def test_an_onnx_file_says_what_it_takes_and_is_one_file(run):
    import onnx

    main(["export", str(run), "--to", "onnx"])
    model = onnx.load(run / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    (pixels,), (scores,) = model.graph.input, model.graph.output
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (pixels, scores)]
    assert shapes == [["N", 64], ["N", 10]]
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told == {"dataset": "digits", "pixels": "in [0, 1], row by row", "scores": "one for each class"}


def test_an_export_replaces_the_one_before_and_a_failed_one_keeps_it(run, monkeypatch, capsys):
    path = run / "model.pt"
    path.write_bytes(b"before")
    assert main(["export", str(run), "--to", "sequential"]) == 0
    whole = path.read_bytes()
    assert whole != b"before"

    def full(source, target):
        raise OSError(28, "No space left on device")

    files = sorted(run.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert main(["export", str(run), "--to", "sequential"]) == 2
    assert capsys.readouterr().err.endswith("No space left on device\n")
    assert path.read_bytes() == whole
    assert sorted(run.iterdir()) == files


def refused(arguments, capsys):
    """Run the command; return its one line on stderr."""
    assert main(["export", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "none", Path(__file__)):
        assert f"expected the folder of a run of train.py, got {folder}" in refused([folder, "--to", "onnx"], capsys)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b"x" * len(b)])
def test_damaged_weights_are_refused(run, capsys, damage):
    path = run / "last.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert f"expected the weights of a run in {path}, got" in refused([run, "--to", "sequential"], capsys)
    path.unlink()
    assert f"expected the weights of a run in {path}, got" in refused([run, "--to", "sequential"], capsys)


def test_settings_without_the_normalisation_are_refused(run, capsys):
    settings = json.loads((run / "config.json").read_text())
    del settings["std"]
    (run / "config.json").write_text(json.dumps(settings))
    assert "expected mean and std" in refused([run, "--to", "sequential"], capsys)


def test_an_unknown_format_is_told_the_known_ones(run, capsys):
    err = refused([run, "--to", "onxx"], capsys)
    assert err == "error: expected --to among onnx, torch-export, sequential, got onxx; did you mean onnx?\n"


def test_the_weights_of_a_run_are_not_overwritten_by_a_slip(run, capsys):
    path = run / "last.safetensors"
    before = path.read_bytes()
    assert f"to end in .pt for --to sequential, got {path}" in refused(
        [run, "--to", "sequential", "--output", path], capsys
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", ["none/net.pt", "file/net.pt", "folder.pt"])
def test_an_output_that_cannot_be_written_is_refused(run, tmp_path, capsys, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.pt").mkdir()
    before = sorted(tmp_path.rglob("*"))
    err = refused([run, "--to", "sequential", "--output", tmp_path / place], capsys)
    assert f"expected an output file that can be written, got {tmp_path / place}: " in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("package", "install"),
    [
        ("onnx", "pip install onnx onnxscript"),
        ("onnxscript", "pip install onnx onnxscript"),
        ("safetensors", "[train]"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(run, capsys, monkeypatch, package, install):
    found = {"onnx", "onnxscript", "safetensors"} - {package}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in found else None)
    err = refused([run, "--to", "onnx"], capsys)
    assert f"got no {package}: " in err
    assert install in err


def test_importing_training_needs_torch_alone():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torchvision', 'tensorboard', 'tqdm', 'tyro', 'sklearn', "
        "'safetensors', 'onnx', 'onnxscript', 'matplotlib'))); from manual_mlp.training import load_run; "
        "import manual_mlp.__main__"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True, timeout=SECONDS)
