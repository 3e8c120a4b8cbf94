"""Every block of code in the README runs as a reader would paste it, and so does every example of a docstring."""

import contextlib
import importlib.util
import inspect
import io
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import manual_mlp
from pasted import ROOT, blocks, command_of, make_clone, paste
from patience import SECONDS

pytest.importorskip("tyro")
pytest.importorskip("torchvision")

README = (ROOT / "README.md").read_text()
BLOCKS = blocks(README)
PYTHON = [text for language, text in BLOCKS if language == "python"]
# A line of a block without a language, but for its comment, if it is a command.
COMMANDS = [
    command_of(line)
    for language, text in BLOCKS
    for line in text.splitlines()
    if not language and re.match(r"(python|torchrun|make) ", line)
]
MAKE = [
    *(line for line in COMMANDS if line.startswith("make ")),
    *re.findall(r"`(make [\w-]+(?: ARGS=\"[^\"]*\")?)`", README),
]
# It takes a minute, and is held elsewhere.
LONG = ("python -m manual_mlp build",)
RUN = [line for line in COMMANDS if line not in (*MAKE, *LONG)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder as a reader has it after a first run: train.py, images, and runs/NAME."""
    return make_clone(tmp_path_factory.mktemp("clone"))


def test_the_blocks_are_found():
    assert len(PYTHON) == README.count("```python") == 2
    assert len(RUN) == 8
    assert len(MAKE) >= 3
    assert set(LONG) <= set(COMMANDS)
    # The first block is the formulas; in the others there is no line but commands.
    shell = [text for language, text in BLOCKS if not language][1:]
    assert len(COMMANDS) == sum(len(text.splitlines()) for text in shell)


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.splitlines()[1])
def test_a_block_of_python_runs_alone(clone, monkeypatch, code):
    monkeypatch.chdir(clone)
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), names)
    assert printed.getvalue() == ""
    if "loss" in names:
        assert names["loss"].isfinite()
        assert all(p.grad.isfinite().all() for p in names["mlp"].parameters())


@pytest.mark.parametrize("line", RUN)
def test_a_command_runs_as_it_is_pasted(clone, line):
    if "onnx" in line and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        pytest.skip("needs the onnx packages")
    if "torchrun" in line and not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("no torch.distributed with gloo")
    before = set(clone.rglob("*"))
    done = paste(line, clone)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    made = {path.name for path in set(clone.rglob("*")) - before}
    words = {
        "--recipe list": ("simard-affine", ""),
        "--resume": ("resumed after epoch 1 of 1", ""),
        "export": ("takes pixels in [0, 1]", "model.onnx"),
        "--html": ("wrote explain.html", "explain.html"),
        "doctor": ("engine", ""),
        "explain": ("checks passed.", ""),
        "train.py": ("test accuracy", "last.safetensors"),
    }
    said, file = next(value for word, value in words.items() if word in line)
    assert said in done.stdout
    assert not file or file in made


def test_what_an_exported_network_takes_is_told_as_the_command_tells_it():
    assert re.search(r"manual_mlp export .*; takes pixels in \[0, 1\]$", README, re.MULTILINE)


@pytest.mark.parametrize("line", dict.fromkeys(MAKE))
def test_a_make_target_is_what_it_says(line):
    # Nothing is run: make prints its commands.
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    words = shlex.split(line)
    done = subprocess.run([make, "-n", "-C", ROOT, *words[1:]], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    for given in words[2:]:
        assert given.removeprefix("ARGS=") in done.stdout


def test_every_extra_that_is_installed_exists():
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    told = "".join((ROOT / name).read_text("utf-8") for name in ("CONTRIBUTING.md", "Makefile"))
    named = re.findall(r"\.\[(\w+(?:,\w+)*)\]'", told)
    assert named
    assert {name for group in named for name in group.split(",")} <= extras.keys()


def examples():
    """Find the examples of all docstrings: of modules, of what they define, and of the methods of that."""
    for module in pkgutil.walk_packages(manual_mlp.__path__, "manual_mlp."):
        if module.name.endswith("__main__") or "triton" in module.name:
            continue
        found = importlib.import_module(module.name)
        own = [thing for thing in vars(found).values() if getattr(thing, "__module__", None) == module.name]
        methods = [(thing, method) for thing in own if inspect.isclass(thing) for method in vars(thing).values()]
        for thing, told in ((found, found), *zip(own, own, strict=True), *methods):
            if not hasattr(told, "__name__"):
                continue  # an instance, whose docstring is its class's
            _, example, code = (inspect.getdoc(told) or "").partition("Example::\n")
            if example:
                yield pytest.param(thing, textwrap.dedent(code.strip("\n")), id=told.__name__)


EXAMPLES = list(examples())


def test_the_examples_are_found():
    texts = [path.read_text() for path in (ROOT / "manual_mlp").rglob("*.py")]
    assert len(EXAMPLES) == sum(text.count("Example::") for text in texts) > 2


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize(("thing", "code"), EXAMPLES)
def test_an_example_of_a_docstring_runs(clone, monkeypatch, thing, code):
    monkeypatch.chdir(clone)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    if not Path("runs/first").exists():
        shutil.copytree("runs/NAME", "runs/first")
    # Whoever reads a docstring has torch, the thing itself, and images of his own.
    names = {"torch": torch, "manual_mlp": manual_mlp, thing.__name__: thing}
    exec(compile(code, thing.__name__, "exec"), names | {"images": torch.randint(256, (5, 28, 28))})
