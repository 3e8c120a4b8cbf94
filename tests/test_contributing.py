"""CONTRIBUTING.md names what there is, and its example is the code's; pre-commit runs what make lint runs."""

import inspect
import re
from pathlib import Path

import pytest
from torch import nn

from benchmarks.__main__ import COMMANDS
from manual_mlp import activations
from manual_mlp.activations.registry import ENTRIES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def test_it_is_short_and_every_file_command_and_target_that_it_names_exists() -> None:
    assert len(TEXT.splitlines()) <= 60
    targets = re.findall(r"`make ([\w-]+)`", TEXT)
    assert len(targets) >= 6
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    for word in re.findall(r"`([\w/]+(?:\.(?:py|md)|/))`", TEXT):
        assert any(
            (folder / word).exists() for folder in (ROOT, ROOT / "manual_mlp", ROOT / "manual_mlp/activations")
        ), word
    for command in re.findall(r"python -m benchmarks ([\w-]+)", TEXT):
        assert command in COMMANDS
    listed = re.search(r"\(or (.*?)\)", TEXT)[1]
    assert set(re.findall(r"`([\w-]+)`", listed)) == set(COMMANDS) - {"dense", "report"}


def test_the_example_of_an_activation_is_the_one_in_the_code() -> None:
    example = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1]
    assert ENTRIES["elu"].module is nn.ELU
    written = inspect.getdoc(activations.elu)
    assert inspect.cleandoc(example.split('"""')[1]) == written
    found: dict[str, object] = {
        "register": activations.register,
        "nn": nn,
        "Activation": lambda **_: activations.get("elu"),
    }
    with pytest.raises(ValueError, match="expected a name that is not yet known, got 'elu'"):
        exec(example, found)


def test_pre_commit_runs_what_make_lint_runs() -> None:
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    hooks = re.findall(r"^ +entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"), re.MULTILINE)
    assert hooks == [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
