"""What train.py says of its flags: help in groups, switches, the version, and which flag was meant."""

import contextlib
import dataclasses
import io
import platform
import re
import shlex
import subprocess
import sys

import pytest
import torch

pytest.importorskip("tyro")

import manual_mlp
from manual_mlp.training import cli, flags
from manual_mlp.training.config import Config
from manual_mlp.training.errors import InputError
from manual_mlp.training.recipes import RECIPES
from runs import SCRIPT

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
SWITCHES = [name for name, field in FIELDS.items() if isinstance(field.default, bool)]
VERSION = f"manual_mlp {manual_mlp.__version__} (torch {torch.__version__}, Python {platform.python_version()})\n"


def helped(*args):
    """Return what is printed where help is asked for, on a stream that takes frames."""
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)) as stream:
        with pytest.raises(SystemExit) as exit:
            cli.parse([*args, "--help"])
        assert exit.value.code == 0
        return stream.buffer.getvalue().decode()


def shown(text):
    """Return the text of each flag, on a line, by group and flag."""
    groups = {}
    for title, box in re.findall(r"^╭─ ([a-z ]+) ─+╮\n((?:│.*│\n)+)╰─+╯$", text, re.MULTILINE):
        rows = [(line[2:26].strip(), line[26:-1].strip()) for line in box.splitlines()]
        groups[title], flag = {}, None
        for left, right in rows:
            flag = left.split()[0].rstrip(",") if left else flag
            groups[title][flag] = f"{groups[title].get(flag, '')} {right}".strip()
    return groups


def refused(*args):
    with pytest.raises(InputError) as error:
        cli.parse(args)
    return str(error.value)


@pytest.mark.parametrize("columns", ["80", "100"])
def test_help_is_in_five_groups_that_fit_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    text = helped()
    assert max(map(len, text.splitlines())) <= int(columns)
    groups = shown(text)
    names = ["data", "network", "training", "augmentation", "run"]
    assert list(groups) == ["options", *[f"{name} options" for name in names]]
    assert set(groups.pop("options")) == {"-h", "--version"}
    of = {flag: group for group, found in groups.items() for flag in found}
    assert sum(map(len, groups.values())) == len(of) == len(FIELDS)
    for flags_of, group in (
        ("dataset data-dir held-out no-normalised", "data"),
        ("hidden activation output-activation dropout", "network"),
        ("loss epochs batch-size lr optimizer weight-decay label-smoothing", "training"),
        ("shift rotation shear translation elastic-alpha input-dropout", "augmentation"),
        ("recipe resume name logdir device precision compile profile dry-run", "run"),
    ):
        assert {of[f"--{flag}"] for flag in flags_of.split()} == {f"{group} options"}
    for text in (text for found in groups.values() for text in found.values()):
        assert re.fullmatch(r"[A-Za-z].*\. \(default: .+\)", text), text


def test_help_begins_with_three_commands_that_can_be_typed(capsys):
    lines = helped().splitlines()
    assert lines[0] == "usage: train.py [-h] [OPTIONS]"
    commands = [re.split("  +", line.strip())[0] for line in lines[1:6] if "python train.py" in line]
    assert len(commands) == 3
    plain, listed, resumed = (shlex.split(command)[2:] for command in commands)
    assert cli.parse(plain).recipe is None
    with pytest.raises(SystemExit) as exit:
        cli.parse(listed)
    assert exit.value.code == 0
    assert capsys.readouterr().out.count("\n") == len(RECIPES)
    assert refused(*resumed).startswith("expected the folder of a run of train.py, got runs/NAME")


def test_a_field_of_a_config_is_in_one_group_with_its_default():
    of_groups = [field.name for group in flags.GROUPS.values() for field in dataclasses.fields(group)]
    assert sorted(of_groups) == sorted(FIELDS)
    assert len(of_groups) == len(set(of_groups))
    assert list(FIELDS) == of_groups  # in this order they stand in config.json


@pytest.mark.parametrize("recipe", [None, "simard", "nielsen-30"])
def test_a_switch_says_what_typing_it_does(recipe):
    given = () if recipe is None else ("--recipe", recipe)
    default = cli.parse(given)
    texts = {flag: text for found in shown(helped(*given)).values() for flag, text in found.items()}
    for name in SWITCHES:
        flag = name.replace("_", "-")
        typed, other = (f"--no-{flag}", f"--{flag}") if getattr(default, name) else (f"--{flag}", f"--no-{flag}")
        assert other not in texts
        assert texts[typed].endswith(". (default: off)")
        assert getattr(cli.parse([*given, typed]), name) is not getattr(default, name)
    about = "Leave" if default.normalised else "Give"
    assert texts["--no-normalised" if default.normalised else "--normalised"].startswith(f"{about} pixels")


@pytest.mark.parametrize("given", [(), ("--recipe", "nielsen-30")], ids=["default", "recipe"])
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_taken_either_way_and_the_last_one_counts(name, given):
    on, off = f"--{name.replace('_', '-')}", f"--no-{name.replace('_', '-')}"
    for typed in ([on], [off], [on, off], [off, on], [off, on, on], [off.replace("-", "_").replace("__", "--")]):
        assert getattr(cli.parse([*typed, *given]), name) is (typed[-1] == on), typed


def test_a_text_for_off_is_where_a_switch_may_be_on():
    may_be_on = {name for name in SWITCHES if FIELDS[name].default or any(r.flags.get(name) for r in RECIPES.values())}
    assert {name for name in FIELDS if "no" in FIELDS[name].metadata} == may_be_on == {"normalised"}


MEANT = {
    "--epoch 3": "--epochs",
    "--epoch=3": "--epochs",
    "--learning-rate 1": "--lr",
    "--learning_rate=1": "--lr",
    "--optimiser sgd": "--optimizer",
    "--wd 0.1": "--weight-decay",
    "--bs 64": "--batch-size",
    "--batch 64": "--batch-size",
    "--hidden-sizes 64": "--hidden",
    "--layers 64": "--hidden",
    "--normalized": "--normalised",
    "--no-normalized": "--no-normalised",
    "--no-epochs 3": "--epochs",
    "--act gelu": "--activation",
    "--log-dir x": "--logdir",
    "--gpu 0": "--device",
    "--hepl": "--help",
    "--versoin": "--version",
    "-e 3": "--epochs",
}


@pytest.mark.parametrize("given", MEANT)
def test_an_unknown_flag_is_answered_with_the_one_that_was_meant(given):
    first = re.split("[ =]", given)[0]
    assert refused(*given.split()) == f"expected a flag, got {first}; did you mean {MEANT[given]}?"
    # Wherever it stands.
    assert refused("--hidden", "64", "32", *given.split()).startswith(f"expected a flag, got {first}; did you mean ")


def test_what_other_trainers_call_a_flag_is_none_of_ours_and_leads_to_one():
    assert not {name.replace("-", "_") for name in flags._ELSEWHERE} & set(FIELDS)
    assert {name.replace("-", "_") for name in flags._ELSEWHERE.values()} <= set(FIELDS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--nonsense 1", "expected a flag, got --nonsense; --help lists them"),
        ("-x", "expected a flag, got -x; --help lists them"),
        ("stray", "expected a flag, got stray"),
        ("-- stray", "expected a flag, got stray"),
        ("--epochs", "expected --epochs to be a whole number below 2**63, got nothing"),
        ("--epochs --lr 1", "expected --epochs to be a whole number below 2**63, got nothing"),
        ("--epochs x", "expected --epochs to be a whole number below 2**63, got x"),
        ("--epochs=", "expected --epochs to be a whole number below 2**63, got ''"),
        ("--epochs 1.5", "expected --epochs to be a whole number below 2**63, got 1.5"),
        ("--epochs 3 4", "expected a flag after --epochs 3, got 4"),
        ("--lr 4e-3x", "expected --lr to be a number, got 4e-3x"),
        ("--lr -inf", "expected --lr to be a positive finite number, got -inf"),
        ("--held-out some", "expected --held-out to be a whole number below 2**63 or None, got some"),
        ("--hidden 64,32", "expected --hidden to be a tuple of whole numbers below 2**63, got 64,32"),
        ("--hidden 64 x", "expected --hidden to be a tuple of whole numbers below 2**63, got 64 x"),
        ("--betas 0.9", "expected --betas to be a tuple of 2 numbers, got 0.9"),
        ("--betas 0.9 0.9 0.9", "expected a flag after --betas 0.9 0.9, got 0.9"),
        ("--compile maybe", "expected a flag after --compile, got maybe"),
        ("--no-normalised=1", "expected a flag after --no-normalised, got 1"),
        ("--resume", "expected --resume to be a path in UTF-8 without control characters or None, got nothing"),
        ("--dataset minst", "expected --dataset to be one of auto, mnist, fashion-mnist, digits, got minst; did you "
            "mean mnist?"),
        ("--optimizer Adam", "expected --optimizer to be one of adamw, adam, rmsprop, sgd, got Adam; did you mean "
            "adam?"),
        ("--loss cross_entropy", "expected --loss to be one of cross-entropy, squared-error, binary-cross-entropy, "
            "got cross_entropy; did you mean cross-entropy?"),
        ("--precision fp8", "expected --precision to be one of fp32, bf16, fp16, got fp8"),
        ("--recipe simrad", f"expected --recipe among list, {', '.join(RECIPES)}, got simrad; did you mean simard?"),
        ("--recipe lst", f"expected --recipe among list, {', '.join(RECIPES)}, got lst; did you mean list?"),
        ("--recipe", f"expected --recipe among list, {', '.join(RECIPES)}, got nothing"),
        ("--recipe --epochs 3", f"expected --recipe among list, {', '.join(RECIPES)}, got nothing"),
        ("--recipe=", f"expected --recipe among list, {', '.join(RECIPES)}, got ''"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_as_what_was_expected_and_what_came(given, said):
    assert refused(*given.split(" ")) == said


def test_a_wrong_activation_is_told_with_the_names_and_the_one_that_was_meant():
    for name in ("activation", "output_activation"):
        with pytest.raises(InputError) as error:
            Config(**{name: "rleu"})
        flag = f"--{name.replace('_', '-')}"
        assert refused(flag, "rleu") == str(error.value)
        assert re.fullmatch(
            rf"expected {flag} to be one of identity, relu, .*, sin, got rleu; did you mean relu\?", str(error.value)
        )


def test_the_version_is_told_whatever_else_is_asked(main, monkeypatch):
    assert main("--version") == (0, VERSION, "")
    assert main("--epochs", "x", "--version") == (0, VERSION, "")
    monkeypatch.setattr(cli, "_EXTRA", ("nonesuch",))
    assert main("--version") == (0, VERSION, "")


def test_the_version_is_told_by_a_process_of_its_own():
    command = [sys.executable, SCRIPT, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parent, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, VERSION, "")
