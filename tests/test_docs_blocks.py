"""What the pages of docs/ show runs as a reader would paste it, and what they name exists."""

import importlib.util
import inspect
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
import torch.nn.functional as F

from benchmarks.__main__ import main as benchmark
from manual_mlp import linear_cross_entropy
from manual_mlp.__main__ import main as command
from manual_mlp.training.cli import parse
from manual_mlp.training.config import Config
from pasted import ROOT, blocks, command_of, ending, make_clone
from patience import SECONDS

pytest.importorskip("tyro")
pytest.importorskip("torchvision")

# The blocks of the derivation and of the modes are of another kind, and held elsewhere.
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
READ = {name: text for name, text in PAGES.items() if name not in ("derivation.md", "modes.md")}
PYTHON = {
    f"{name}, {k}": code
    for name, text in READ.items()
    for k, code in enumerate(code for language, code in blocks(text) if language == "python")
}
SHELL = [code for text in READ.values() for language, code in blocks(text) if not language]
COMMANDS = list(dict.fromkeys(command_of(line) for code in SHELL for line in code.splitlines()))
# Of the rest it is asked whether it exists: it takes long, a compiler or a GPU, and is held elsewhere.
CHEAP = re.compile(r"python (train\.py|-m manual_mlp export)(?!.*--compile)")
RUN = [line for line in COMMANDS if CHEAP.match(line)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder as a reader has it after a first run: train.py, images, and runs/NAME."""
    return make_clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture
def inside(clone, monkeypatch):
    """Work in that folder, and leave this process as it was."""
    monkeypatch.chdir(clone)
    monkeypatch.setenv("MANUAL_MLP_DATA", "data")
    monkeypatch.setenv("GOMP_SPINCOUNT", "3000")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return clone


def test_the_blocks_are_found():
    assert len(PYTHON) == sum(text.count("```python\n") for text in READ.values()) > 8
    assert len(COMMANDS) > 15
    assert len(RUN) > 7


@pytest.mark.usefixtures("forget", "inside")
@pytest.mark.parametrize("name", PYTHON)
def test_a_block_of_python_runs_alone(name):
    with ending():
        exec(compile(PYTHON[name], name, "exec"), {"__name__": "__main__"})


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_exists_and_knows_its_flags(line, capsys):
    words = shlex.split(line)
    if words[0] == "make":
        make = shutil.which("make")
        if make is None:
            pytest.skip("needs make")
        done = subprocess.run([make, "-n", "-C", ROOT, *words[1:]], capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        assert all(given.removeprefix("ARGS=") in done.stdout for given in words[2:])
    elif words[0] == "pip":
        assert (ROOT / words[-1] / "pyproject.toml").is_file()
    elif words[1].startswith("examples/"):
        script = (ROOT / words[1]).read_text()
        assert all(f'"{word}"' in script for word in words if word.startswith("--"))
    elif words[:2] == ["python", "-m"]:
        with ending():
            {"manual_mlp": command, "benchmarks": benchmark}[words[2]]([words[3], "--help"])
        told = capsys.readouterr().out
        assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[\w-]+", told))
    else:
        assert words[0] in ("python", "torchrun")
        with ending():
            parse(words[words.index("train.py") + 1 :])


@pytest.mark.parametrize("line", RUN)
def test_a_cheap_command_runs_as_it_is_pasted(inside, line, monkeypatch, capsys):
    words = shlex.split(line)
    if "onnx" in words and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        pytest.skip("needs the onnx packages")
    if words[1] == "-m":
        assert command(words[3:]) == 0
        assert "takes pixels in [0, 1]" in capsys.readouterr().out
    else:
        if "NAME" in words:  # of the fixture
            shutil.rmtree(inside / "runs" / "NAME")
        monkeypatch.setattr(sys, "argv", words[1:])
        with ending():
            runpy.run_path("train.py", run_name="__main__")
        assert ("simard-affine" if "list" in words else "test accuracy") in capsys.readouterr().out


@pytest.mark.usefixtures("inside")
def test_the_walk_of_a_number_says_what_its_code_prints(capsys):
    exec(compile(PYTHON["inside.md, 0"], "inside.md", "exec"), {})
    printed = [line.split()[-1].replace("-", "−") for line in capsys.readouterr().out.splitlines()]
    assert re.findall(r"= (−?\d\.\d{4}) \| [FOB]\d \|", READ["inside.md"]) == printed
    assert len(printed) == 7


def test_the_layout_names_what_is_there_and_leaves_no_room_out():
    layout = next(code for _, code in blocks(READ["inside.md"]) if code.startswith("manual_mlp/\n"))
    inner, outer = [re.findall(rf"^{indent}(\S+)", layout, re.MULTILINE) for indent in ("  ", "")]
    assert all((ROOT / name).exists() for name in outer)
    rooms = {path.name for path in (ROOT / "manual_mlp").glob("*.py")} - {"__init__.py"}
    rooms |= {f"{path.parent.name}/" for path in (ROOT / "manual_mlp").glob("*/__init__.py")}
    assert sorted(inner) == sorted(rooms)


def test_the_table_of_losses_names_every_argument_of_ours_and_of_torchs():
    rows = [row.split("|") for row in READ["coming-from.md"].splitlines() if row.count("|") == 6]
    # An older torch has none.
    torchs = getattr(F, "linear_cross_entropy", linear_cross_entropy)
    for column, function in ((2, linear_cross_entropy), (3, torchs))[: 1 + (torchs is not linear_cross_entropy)]:
        named = re.findall(r"`(\w+)", " ".join(row[column] for row in rows))
        assert set(inspect.signature(function).parameters) - {"ignore_index", "reduction"} <= set(named)


def test_every_flag_that_training_names_is_one_of_train_py():
    named = re.findall(r"--([\w-]+)", " ".join(re.findall(r"`[^`\n]+`", READ["training.md"])))
    assert {flag.replace("-", "_") for flag in named} - {"help"} <= {field.name for field in fields(Config)}
    assert len(named) > 10
