"""train.py as a user runs it."""

import dataclasses
import importlib.util
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
import torch

pytest.importorskip("tyro")
pytest.importorskip("torchvision")

from manual_mlp import activations
from manual_mlp.training import checkpoint
from manual_mlp.training.config import Config
from manual_mlp.training.data import load
from manual_mlp.training.recipes import RECIPES
from patience import SECONDS
from runs import SCRIPT, read_until, start

LAST_LINE = re.compile(r"test accuracy \d+\.\d\d %")
SMALL = ("--dataset", "digits", "--hidden", "32", "--epochs", "2", "--batch-size", "64")


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return events


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished run: process, stdout, stderr, folder."""
    logdir = tmp_path_factory.mktemp("a folder") / "runs"
    process = start(*SMALL, "--check-every", "5", "--activation", "gelu", "--logdir", logdir, "--name", "first")
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    return out, err, logdir / "first"


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A long run that got Ctrl-C after its first epoch: process, stdout, stderr, folder."""
    logdir = tmp_path_factory.mktemp("interrupted")
    process = start(*SMALL, "--epochs", "100000", "--logdir", logdir, "--name", "run")
    head = read_until(process, "epoch 1:")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    return process, head + out, err, logdir / "run"


def test_the_last_line_on_stdout_is_the_test_accuracy(run):
    out, _, _ = run
    assert LAST_LINE.fullmatch(out.splitlines()[-1])
    assert out.count("test accuracy") == 1


def test_a_bar_shows_loss_accuracy_and_images_per_second_on_stderr(run):
    _, err, _ = run
    assert re.search(r"epoch 2/2: 100%.* images/s, loss \d.*accuracy \d", err)


def test_the_saved_model_has_the_accuracy_that_was_printed(run):
    out, _, folder = run
    model = checkpoint.load_model(folder)
    test = load("digits", Path("unused"), torch.device("cpu")).read_test()
    accuracy = (model(test.images).argmax(1) == test.labels).double().mean().item()
    assert out.splitlines()[-1] == f"test accuracy {100 * accuracy:.2f} %"


def test_the_saved_config_tells_how_to_build_and_feed_the_model(run):
    saved = json.loads((run[2] / "config.json").read_text())
    assert saved["sizes"] == [64, 32, 10]
    assert (saved["activation"], saved["epochs"], saved["dataset"]) == ("gelu", 2, "digits")
    assert saved["mean"] > 0
    assert saved["std"] > 0


def test_tensorboard_has_every_curve_histogram_picture_and_the_config(run):
    events = scalars(run[2])
    tags = events.Tags()
    curves = {f"{kind}/{part}" for kind in ("loss", "accuracy") for part in ("train", "validation", "test")}
    curves |= {"learning_rate", "images_per_second", "gradients/norm", "gradients/max_abs_error"}
    assert set(tags["scalars"]) == curves
    parameters = [f"layers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
    assert set(tags["histograms"]) == {f"{kind}/{name}" for kind in ("weights", "gradients") for name in parameters}
    assert "filters" in tags["images"]
    assert b"gelu" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert [e.step for e in events.Scalars("loss/validation")] == [22, 44]
    assert [e.step for e in events.Scalars("gradients/max_abs_error")] == list(range(1, 45, 5))


def test_the_manual_gradient_agrees_with_autograds_through_the_run(run):
    errors = [e.value for e in scalars(run[2]).Scalars("gradients/max_abs_error")]
    assert max(errors) < 1e-6


def test_the_printed_command_opens_tensorboard(run):
    out, _, folder = run
    command = re.search(r"^TensorBoard: (.*)$", out, re.MULTILINE)[1]
    words = shlex.split(command)
    assert words[-1] == str(folder)
    assert all(Path(word).is_absolute() for word in (words[0], words[-1]))
    process = subprocess.Popen([*words, "--port", "0"], stderr=subprocess.PIPE, text=True, cwd="/")
    try:
        assert any("http://" in line for line in process.stderr)
    finally:
        process.terminate()
        process.communicate()


def test_the_photograph_shows_matrix_mistakes_and_filters_of_a_run(run):
    photograph = runpy.run_path(str(SCRIPT.parent / "docs/photograph_training.py"))["photograph"]
    picture = photograph(run[2]).convert("RGB")
    width, height = picture.size
    assert width == 1660
    blue = [colour for _, colour in picture.crop((0, 0, width // 2, height // 2)).getcolors(256) if colour[2] > 150]
    assert len({colour for colour in blue if colour[0] < colour[2] - 50}) > 3  # counts of the matrix differ
    for box in ((width // 2, 100, width, height // 2), (0, height - 200, width, height)):
        colours = picture.crop(box).getcolors(256)
        assert len(colours) > 10  # greys of digits, and of weights
        assert all(max(colour) - min(colour) < 20 for _, colour in colours)


def test_an_existing_name_is_an_error_and_nothing_is_overwritten(run, main):
    folder = run[2]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    status, out, err = main(*SMALL, "--logdir", folder.parent, "--name", "first")
    assert status == 2
    assert err.splitlines()[-1].startswith("error: expected a new --name, got first")
    assert "test accuracy" not in out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_ctrl_c_ends_with_the_results_so_far_and_status_130(interrupted):
    process, out, err, folder = interrupted
    assert process.returncode == 130
    assert "Traceback" not in err + out
    assert LAST_LINE.fullmatch(out.splitlines()[-1])
    assert "interrupted" in out
    assert checkpoint.load_model(folder).layers[0].weight.shape == (32, 64)


def test_after_ctrl_c_tensorboard_has_what_was_learnt(interrupted):
    events = scalars(interrupted[3])
    assert len(events.Scalars("loss/validation")) >= 1
    assert len(events.Scalars("accuracy/test")) == 1


def test_a_dry_run_does_everything_and_leaves_nothing_behind(main, tmp_path):
    status, out, _ = main("--dataset", "digits", "--dry-run", "--batch-size", "8")
    assert status == 0
    assert "trained 4 steps" in out
    assert LAST_LINE.fullmatch(out.splitlines()[-1])
    assert list(tmp_path.iterdir()) == []


def test_the_default_name_is_new_every_time(main, tmp_path):
    for _ in range(2):
        assert main(*SMALL, "--epochs", "1")[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_test_images_are_read_once_and_after_training(main, monkeypatch):
    from manual_mlp.training import data, loop

    happened = []

    def spy(*args):
        found = load(*args)
        return dataclasses.replace(found, read_test=lambda: happened.append("test read") or found.read_test())

    fit = loop.Trainer.fit
    monkeypatch.setattr(data, "load", spy)
    monkeypatch.setattr(loop.Trainer, "fit", lambda *args: (fit(*args), happened.append("trained"))[0])
    assert main(*SMALL)[0] == 0
    assert happened == ["trained", "test read"]


def test_help_explains_every_flag_with_its_default(main):
    status, out, _ = main("--help")
    # The commands above the flags name some of them too.
    text = " ".join(out.partition("options")[2].replace("│", " ").split())
    assert status == 0
    for field in dataclasses.fields(Config):
        flag = ("--no-" if field.default is True else "--") + field.name.replace("_", "-")
        own = text.split(f" {flag} ", 1)[1].split(" --", 1)[0]
        assert re.search(r"[a-z]+.*\. .*\((default|sets): .*\)", own), flag
    assert "--hidden [INT [INT ...]] Widths of the hidden layers. (default: 512 256)" in text
    assert all(name in text for name in activations.names())


@pytest.mark.parametrize(
    "wrong", [{"activation": "sine"}, {"loss": "l2"}, {"optimizer": "lion"}, {"lr": -1.0}, {"betas": (0.9,)}]
)
def test_a_config_made_in_python_is_checked_too(wrong):
    with pytest.raises(ValueError, match=r"expected --\w+ to be .*, got"):
        Config(**wrong)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--activation", "sine"], "lecun_tanh"),
        (["--dataset", "cifar"], "fashion-mnist"),
        (["--precision", "fp8"], "bf16"),
        (["--nonsense", "1"], "expected a flag, got --nonsense; --help lists them"),
        (["--epochs", "many"], "expected --epochs to be a whole number below 2**63, got many"),
        (["--epochs", "-1"], "expected --epochs to be at least 1, got -1"),
        (["--epochs", "0"], "expected --epochs to be at least 1, got 0"),
        (["--batch-size", "0"], "expected --batch-size to be at least 1, got 0"),
        (["--lr", "nan"], "expected --lr to be a positive finite number, got nan"),
        (["--lr", "0"], "expected --lr to be a positive finite number, got 0.0"),
        (["--hidden", "64", "0"], "expected --hidden to be widths of at least 1, got 64 0"),
        (["--hidden", "-3"], "expected --hidden to be widths of at least 1, got -3"),
        (["--hidden", "1000000000000000"], "expected --hidden that fits into memory, got [64, 1000000000000000, 10]"),
        (["--dropout", "1.5"], "expected --dropout to be a number in [0, 1), got 1.5"),
        (["--input-dropout", "1"], "expected --input-dropout to be a number in [0, 1), got 1.0"),
        (["--weight-decay", "inf"], "expected --weight-decay"),
        (["--label-smoothing", "1"], "expected --label-smoothing"),
        (["--shift", "-1"], "expected --shift"),
        (["--seed", "-1"], "expected --seed"),
        (["--check-every", "-1"], "expected --check-every"),
        (["--log-every", "0"], "expected --log-every to be at least 1, got 0"),
        (["--held-out", "-1"], "expected --held-out"),
        (["--held-out", "1498"], "expected more training images than the 1498 that validation takes, got 1498"),
        (["--warmup", "1"], "expected --warmup"),
        (["--momentum", "nan"], "expected --momentum"),
        (["--rotation", "181"], "expected --rotation"),
        (["--scaling", "1"], "expected --scaling"),
        (["--shear", "90"], "expected --shear"),
        (["--translation", "-1"], "expected --translation"),
        (["--elastic-alpha", "inf"], "expected --elastic-alpha"),
        (["--elastic-sigma", "0.1"], "expected --elastic-sigma"),
        (["--elastic-sigma", "1e9"], "expected --elastic-sigma"),
        (["--schedule", "cosine"], "linear"),
        (["--initial", "zero"], "scaled-normal"),
        (["--betas", "0.9", "1"], "expected --betas to be two numbers in [0, 1), got 0.9 1.0"),
        (["--betas", "0.9"], "--betas"),
        (["--output-activation", "softmax"], "identity"),
        (["--recipe", "nobody"], "expected --recipe among list, lecun-300"),
        (["--recipe"], "--recipe"),
        (["--name", "a/b"], "expected --name to be a folder name without a path, got a/b"),
        (["--name", ".."], "expected --name"),
        (["--name", ""], "expected --name"),
        (["--device", "tpu"], "cpu"),
        (["--device", "cuda:99"], "got cuda:99"),
        (["--logdir", str(SCRIPT)], f"expected a writable --logdir, got {SCRIPT}: Not a directory"),
    ],
)
def test_bad_input_is_one_line_with_status_2(main, tmp_path, flags, expected):
    status, out, err = main("--dataset", "digits", *flags)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert "test accuracy" not in out
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_file_is_one_line_with_status_2(main, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(bytes.fromhex("00000803 0000ea60 0000001c 0000001c"))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(bytes.fromhex("00000801 0000ea60"))
    status, _, err = main("--data-dir", tmp_path)
    assert status == 2
    path = raw / "train-images-idx3-ubyte"
    assert err.startswith(f"error: expected 47040016 bytes in {path}, got 16")
    assert err.count("\n") == 1


def test_an_unwritable_logdir_is_one_line_with_status_2(main, monkeypatch):
    def refuse(self, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    status, _, err = main(*SMALL, "--logdir", "locked")
    assert status == 2
    assert err == "error: expected a writable --logdir, got locked: Permission denied\n"


def test_a_diverged_run_is_one_line_with_status_1_and_keeps_its_events(main, tmp_path):
    status, out, err = main(*SMALL, "--optimizer", "sgd", "--lr", "1e30", "--name", "bad")
    assert status == 1
    assert re.search(r"^error: expected a finite loss, got (nan|inf) in epoch 1 at step \d+", err, re.MULTILINE)
    assert "test accuracy" not in out
    assert scalars(tmp_path / "runs/bad").Scalars("gradients/max_abs_error")


def test_a_missing_extra_is_one_line_that_says_how_to_install_it(main, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    status, _, err = main()
    assert status == 2
    assert err.startswith("error: expected the packages for training, got no tensorboard")
    assert err.endswith("pip install '.[train]'\n")


@pytest.mark.skipif("MANUAL_MLP_DATA" not in os.environ, reason="needs MNIST in MANUAL_MLP_DATA")
def test_auto_takes_mnist_from_the_environment(main):
    status, out, _ = main("--dry-run", "--hidden", "32")
    assert status == 0
    assert out.startswith("mnist: 55,000 training and 5,000 validation images 28x28")


def test_recipes_are_listed(main):
    status, out, _ = main("--recipe", "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(RECIPES)


@pytest.mark.skipif("MANUAL_MLP_DATA" not in os.environ, reason="needs MNIST in MANUAL_MLP_DATA")
def test_flags_override_a_recipe_wherever_they_stand(main):
    status, out, _ = main("--hidden", "32", "--recipe", "simard-affine", "--batch-size", "8", "--dry-run")
    assert status == 0
    assert "in_features=784, out_features=32" in out
    assert out.startswith("mnist: 60,000 training and 0 validation images")
