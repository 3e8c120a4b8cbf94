"""`python -m manual_mlp`: its commands and flags, and which was meant."""

import platform

import pytest
import torch

import manual_mlp
from manual_mlp.__main__ import main

FLAGS = {
    "explain": "--html, --serve, --numbers, --inputs, --outputs, --batch, --activation, --loss, --seed, --break, "
    "--digit, --checkpoint, --data-dir",
    "export": "--to, --output, --best",
    "build": "--force, --wheel",
}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(arguments)
    except SystemExit as exit:
        status = int(exit.code or 0)
    return status, *capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "expected a command, one of explain, export, build, doctor, got nothing"),
        ("expalin", "expected a command, one of explain, export, build, doctor, got 'expalin'; did you mean explain?"),
        ("docter", "expected a command, one of explain, export, build, doctor, got 'docter'; did you mean doctor?"),
        ("zzz", "expected a command, one of explain, export, build, doctor, got 'zzz'"),
        ("--versoin", "expected a flag among --version, got --versoin; did you mean --version?"),
        ("explain --activatoin=x", f"expected a flag among {FLAGS['explain']}, got --activatoin=x; did you mean "
            "--activation?"),
        ("explain html", f"expected a flag among {FLAGS['explain']}, got html; did you mean --html?"),
        ("--nonsense explain", f"expected a flag among {FLAGS['explain']}, got --nonsense"),
        ("export RUN --to onnx --outptu x", f"expected a flag among {FLAGS['export']}, got --outptu; did you mean "
            "--output?"),
        ("build --froce", f"expected a flag among {FLAGS['build']}, got --froce; did you mean --force?"),
        ("doctor --x", "expected a flag, got --x"),
        ("explain --loss sqared-error", "expected --loss to be one of cross-entropy, squared-error, "
            "binary-cross-entropy, got 'sqared-error'; did you mean squared-error?"),
        ("explain --digit 12", "expected --digit to be one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, got 12"),
        ("export RUN --to onxn", "expected --to among onnx, torch-export, sequential, got onxn; did you mean onnx?"),
    ],
)  # fmt: skip
def test_a_bad_word_is_one_line_that_says_which_was_meant(
    capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    assert said(capsys, *arguments.split()) == (2, "", f"error: {message}\n")


def test_an_activation_of_another_name_is_told_the_names_and_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, "explain", "--activation", "rleu")
    assert (status, out) == (2, "")
    assert err.startswith("error: expected an activation among identity, relu, ")
    assert err.endswith(", got 'rleu'; did you mean relu?\n")


def test_the_version_is_told_with_torchs_and_pythons(capsys: pytest.CaptureFixture[str]) -> None:
    told = f"manual_mlp {manual_mlp.__version__} (torch {torch.__version__}, Python {platform.python_version()})\n"
    assert said(capsys, "--version") == (0, told, "")
