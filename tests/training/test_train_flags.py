"""Flags: each has bounds, and what lies beyond is refused in one line before anything is made."""

import dataclasses
import itertools
import math
import struct
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch

pytest.importorskip("tyro")

from manual_mlp.training.config import Config
from manual_mlp.training.errors import InputError
from mnist import path_of, write_idx, write_mnist

FIELDS = {field.name: get_type_hints(Config)[field.name] for field in dataclasses.fields(Config)}
JUST_BELOW_1 = math.nextafter(1, 0)
# The smallest and the largest value that each number may have.
RANGES = {
    "held_out": (0, 2**63 - 1),
    "hidden": (1, 2**63 - 1),
    "epochs": (1, 2**63 - 1),
    "batch_size": (1, 2**63 - 1),
    "seed": (0, 2**63 - 1),
    "check_every": (0, 2**63 - 1),
    "log_every": (1, 2**63 - 1),
    "lr": (5e-324, sys.float_info.max),
    "weight_decay": (0.0, sys.float_info.max),
    "rotation": (0.0, 180.0),
    "shear": (0.0, math.nextafter(90, 0)),
    "translation": (0.0, 1e6),
    "elastic_alpha": (0.0, 1e6),
    "elastic_sigma": (0.5, 100.0),
    **dict.fromkeys(
        ("warmup", "momentum", "betas", "dropout", "input_dropout", "label_smoothing", "shift", "scaling"),
        (0.0, JUST_BELOW_1),
    ),
}
NUMBERS = [name for name, hint in FIELDS.items() if {int, float} & {hint, *get_args(hint)}]


def fitting(name, value):
    """Put a number where a field wants several."""
    count = {"hidden": 1, "betas": 2}.get(name)
    return (value,) * count if count else value


def beyond(value, direction):
    return value + direction if isinstance(value, int) else math.nextafter(value, direction * math.inf)


def refused(**values):
    """Return the line with which a config is refused."""
    with pytest.raises(InputError) as error:
        Config(**values)
    said = str(error.value)
    (name,) = values
    assert said.startswith(f"expected --{name.replace('_', '-')} to be ")
    assert ", got " in said
    assert said.isprintable()
    assert len(said) < 700
    return said


def test_every_number_has_a_range():
    assert set(NUMBERS) == set(RANGES)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_taken_to_the_ends_of_its_range_and_refused_beyond(name):
    low, high = RANGES[name]
    for value in (low, high):
        assert getattr(Config(**{name: fitting(name, value)}), name) == fitting(name, value)
    for value in (beyond(low, -1), beyond(high, 1), -(10**30), 10**400, 10**5000, math.nan, math.inf, -math.inf):
        refused(**{name: fitting(name, value)})


WRONG = {
    "None": None,
    "true": True,
    "a whole number": 3,
    "a fraction": 2.5,
    "text": "4",
    "bytes": b"4",
    "a path": Path("4"),
    "a list": [1, 2],
    "a tuple of text": ("1", "2"),
    "a tuple of tuples": ((1, 2),),
    "a tuple of fractions": (0.5, 0.25),
    "a tuple of truths": (True, False),
    "three fractions": (0.1, 0.2, 0.3),
    "an object": {"epochs": 4},
    "a list in a list": [[[["deep"]]]],
    "a complex number": 1j,
    "a tensor": torch.zeros(3),
    "a class": int,
}
# What is right, and of a value that no range refuses.
RIGHT = {
    int: {"a whole number"},
    float: {"a whole number", "a fraction"},
    bool: {"true"},
    str: {"text"},
    Path: {"a path"},
    tuple[int, ...]: set(),
    tuple[float, float]: {"a tuple of fractions"},
    type(None): {"None"},
}
OUT_OF_RANGE = {"a whole number", "a fraction"}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", FIELDS)
def test_a_value_of_another_type_is_refused(name, kind):
    hint = FIELDS[name]
    hints = [hint] if hint in RIGHT or get_origin(hint) is Literal else get_args(hint)
    if any(kind in RIGHT.get(each, ()) for each in hints):
        return
    assert refused(**{name: WRONG[kind]})


@pytest.mark.parametrize("name", ["hidden", "betas"])
def test_a_tuple_may_be_of_no_other_length(name):
    assert Config(hidden=()).hidden == ()
    assert "a tuple of 2 numbers" in refused(betas=(0.9,))


@pytest.mark.parametrize("flag", [name for name, hint in FIELDS.items() if {str, Path} & {hint, *get_args(hint)}])
@pytest.mark.parametrize("letter", ["\0", "\n", "\r", "\x1b", "\x7f", "\x85", "\u2028", "\udcff"], ids=ascii)
def test_text_with_letters_that_break_lines_or_files_is_refused(flag, letter):
    value = f"a{letter}b"
    refused(**{flag: Path(value) if Path in (FIELDS[flag], *get_args(FIELDS[flag])) else value})


@pytest.mark.parametrize("device", ["", "tpu", "cuda:", "cuda:-1", "cuda:0:0", "CPU", "cpu:0", " cpu", "auto "])
def test_a_device_that_no_machine_has_is_refused(device):
    assert "auto, cpu, cuda or cuda:N" in refused(device=device)


def test_a_wrong_type_is_told_from_a_right_value():
    assert "got '4'" in refused(epochs="4")
    assert "got 'a\\nb'" in refused(logdir=Path("a\nb"))
    assert "expected --epochs to be a whole number below 2**63, got 4.0" in refused(epochs=4.0)
    assert "expected --compile to be True or False, got 1" in refused(compile=1)
    assert "expected --logdir to be a path in UTF-8 without control characters, got None" in refused(logdir=None)
    assert "got a int too long to write" in refused(epochs=10**5000)


LONG = "ü" * 128  # 256 bytes
# What the command line may be given, and a part of what it says.
BAD = [
    *[(f"--{flag}", value, "") for flag in ("epochs", "batch-size") for value in ("0", "-1", "x", "1.5", "")],
    *[
        (f"--{flag}", value, "expected --")
        for flag in ("epochs", "batch-size", "hidden", "held-out", "seed", "log-every", "check-every")
        for value in (str(2**63), "1" + "0" * 30, "-" + "9" * 30)
    ],
    ("--epochs", "9" * 5000, "--epochs"),
    ("--hidden", str(2**62), "expected --hidden that fits into memory"),
    *[
        (f"--{flag}", value, "expected --")
        for flag in ("lr", "weight-decay", "warmup", "momentum", "dropout", "shift", "rotation", "elastic-alpha")
        for value in ("nan", "inf", "-inf", "1e999", "-1e-300")
    ],
    ("--lr", "0x1", "--lr"),
    ("--betas", "0.9 nan", "expected --betas"),
    ("--betas", "0.9 0.9 0.9", "0.9"),
    ("--translation", "1e7", "pixels in [0, 1,000,000], got 10000000.0"),
    ("--name", LONG, "expected --name to be at most 255 bytes long, got"),
    *[("--name", value, "expected --name") for value in (".", "..", "", "a/b", "/", "/a", "a/", "a\nb", "a\0b")],
    *[("--name", value, "expected --name") for value in ("\udcff", "a\x1b[31mb", "a\u2028b", "a\rb")],
    *[(f"--{flag}", f"a{bad}b", f"expected --{flag}") for flag in ("data-dir", "logdir", "resume") for bad in "\0\n"],
    *[(f"--{flag}", "a\udcffb", f"expected --{flag}") for flag in ("data-dir", "logdir", "resume", "device")],
    *[
        ("--device", value, "expected --device to be auto")
        for value in ("cuda:-1", "cuda:" + "9" * 20, "meta", "", "cuda:", "cuda:0:0", "CPU", "cpu:0", " cpu")
    ],
    ("--device", "a\nb", "expected --device to be text in UTF-8 without control characters, got 'a\\nb'"),
    *[("--recipe", value, "expected --recipe among") for value in ("", "nobody", "None")],
    ("--activation", "a\nb", "--activation"),
    ("--dataset", "", "--dataset"),
    ("--precision", "fp64", "--precision"),
    ("--optimizer", "Adam", "--optimizer"),
    ("--no-such-flag", "1", "--no-such-flag"),
    ("--no-such\n-flag", "1", "--no-such"),
    ("--epoch", "1", "--epoch"),
    ("--compile", "maybe", "maybe"),
    ("stray", "", "stray"),
]


@pytest.mark.parametrize(("flag", "value", "expected"), BAD, ids=ascii)
def test_a_flag_out_of_range_is_one_line_with_status_2_and_makes_nothing(main, tmp_path, flag, value, expected):
    values = value.split(" ") if flag == "--betas" else [value]
    small = {"--dataset": "digits", "--epochs": "1", "--hidden": "4"}
    rest = [part for pair in small.items() if pair[0] != flag for part in pair]
    status, _, err = main(*rest, flag, *values)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert len(err) < 1000
    assert expected in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_one_line(main, tmp_path):
    file = tmp_path / "file"
    file.touch()
    for flags in (("--data-dir", file), ("--dataset", "digits", "--logdir", file)):
        status, _, err = main("--epochs", 1, "--hidden", 4, *flags)
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith(f"error: expected {'a writable --logdir' if 'digits' in flags else '--data-dir'}")
        assert list(tmp_path.iterdir()) == [file]


def test_of_a_flag_given_twice_the_last_counts(main):
    status, out, _ = main("--dataset", "digits", "--epochs", 3, "--hidden", 4, "--epochs", 1)
    assert status == 0
    assert "epoch 1:" in out
    assert "epoch 2:" not in out


# At the ends of their ranges, on the digits.
EXTREMES = [
    *[f"--batch-size {2**63 - 1}", f"--seed {2**63 - 1}", f"--log-every {2**63 - 1}", f"--check-every {2**63 - 1}"],
    *["--hidden", "--held-out 0", "--held-out 1497", "--lr 5e-324", f"--warmup {JUST_BELOW_1}"],
    *[f"--betas {JUST_BELOW_1} {JUST_BELOW_1}", f"--dropout {JUST_BELOW_1}", f"--label-smoothing {JUST_BELOW_1}"],
    "--optimizer sgd --momentum 0 --lr 0.1",
    "--name ü" + "x" * 253,
]


@pytest.mark.parametrize("flags", EXTREMES, ids=lambda flags: flags[:30])
def test_at_the_ends_of_its_range_a_flag_works(main, flags):
    hidden = () if "--hidden" in flags else ("--hidden", 4)
    status, out, err = main("--dataset", "digits", "--epochs", 1, *hidden, *flags.split())
    assert status == 0, err
    assert "test accuracy" in out


@pytest.mark.parametrize("flags", ["--lr 1e308", "--weight-decay 1e308", "--lr 1e308 --optimizer sgd --momentum 0"])
def test_a_rate_that_no_network_bears_is_told_in_one_line(main, flags):
    status, _, err = main("--dataset", "digits", "--epochs", 2, "--hidden", 4, "--log-every", 1, *flags.split())
    assert status == 1
    assert err.splitlines()[-1].startswith("error: expected a finite ")
    assert "Traceback" not in err


def test_so_many_epochs_overflow_nothing(main, monkeypatch):
    from manual_mlp.training import loop

    real = loop.Trainer._epoch

    def last(self, *args):
        real(self, *args)
        raise loop.DivergedError("enough")

    monkeypatch.setattr(loop.Trainer, "_epoch", last)
    status, _, err = main("--dataset", "digits", "--hidden", 4, "--epochs", 2**63 - 1)
    assert (status, err.splitlines()[-1]) == (1, "error: enough")


DISTORTIONS = [
    "--shift 0.99",
    "--rotation 180",
    f"--scaling {JUST_BELOW_1}",
    f"--shear {math.nextafter(90, 0)}",
    "--translation 1e6",
    "--elastic-alpha 34",
    "--elastic-alpha 1e6 --elastic-sigma 0.5",
    "--elastic-alpha 1e6 --elastic-sigma 100",
    f"--input-dropout {JUST_BELOW_1}",
    f"--rotation 180 --scaling {JUST_BELOW_1} --shear 89.99 --translation 1e6 --elastic-alpha 1e6 --shift 0.99",
]


SHAPES = [(1, 1), (1, 30), (30, 1), (2, 2), (1, 300)]


# A side of 1000 takes a field of 1000 by 1000: once, in all distortions at a time, is enough.
@pytest.mark.product
@pytest.mark.parametrize(
    ("distortion", "shape", "colour"),
    [*itertools.product(DISTORTIONS, SHAPES, ["any", "one"]), (DISTORTIONS[-1], (1, 1000), "any")],
    ids=str,
)
def test_every_distortion_works_on_images_of_every_size(main, tmp_path, shape, distortion, colour):
    for part, count in (("train", 24), ("t10k", 6)):
        images = torch.randint(256, (count, *shape)) if colour == "any" else torch.full((count, *shape), 200)
        write_idx(path_of(tmp_path, f"{part}-images"), images)
        write_idx(path_of(tmp_path, f"{part}-labels"), torch.arange(count) % 10)
    flags = ("--dataset", "mnist", "--data-dir", tmp_path, "--epochs", 1, "--hidden", 4, "--batch-size", 8)
    status, out, err = main(*flags, *distortion.split())
    assert status == 0, err
    assert "test accuracy" in out


@pytest.mark.parametrize("shape", [(0, 4, 3), (24, 0, 0), (24, 0, 3), (24, 3, 0)], ids=str)
@pytest.mark.parametrize("part", ["train", "t10k"])
def test_images_without_a_pixel_are_refused_before_anything_is_made(main, tmp_path, shape, part):
    for other in ("train", "t10k"):
        count = 24 if other != part else shape[0]
        path = path_of(tmp_path, f"{other}-images")
        path.parent.mkdir(parents=True, exist_ok=True)
        values = bytes(24 * 12) if other != part else b""
        path.write_bytes(bytes((0, 0, 8, 3)) + struct.pack(">3I", *((24, 4, 3) if other != part else shape)) + values)
        write_idx(path_of(tmp_path, f"{other}-labels"), torch.zeros(count, dtype=torch.int))
    status, _, err = main("--data-dir", tmp_path, "--epochs", 1, "--hidden", 4)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: expected at least one image, and one pixel, in ")
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]


def test_images_too_large_for_an_elastic_field_are_refused_before_anything_is_made(main, tmp_path):
    data = write_mnist(tmp_path / "data", shape=(1, 4097))
    flags = ("--data-dir", data, "--hidden", 4, "--batch-size", 8, "--elastic-alpha", 1)
    status, _, err = main(*flags)
    expected = "expected sides of at most 4096 pixels for an elastic deformation, got 1x4097"
    assert (status, err) == (2, f"error: {expected}\n")
    assert not (tmp_path / "runs").exists()
