"""What the README shows is true."""

import re
from pathlib import Path

import pytest

import manual_mlp

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_the_example_is_ten_lines_that_run_and_end_in_a_check() -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert sum(bool(line.strip()) for line in example.splitlines()) == 10
    assert example.splitlines()[-1].startswith("assert")
    exec(compile(example, "README.md", "exec"), {})


def test_the_example_notices_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    wrong = example.replace("cost(w).backward()", "(1.001 * cost(w)).backward()")
    with pytest.raises(AssertionError):
        exec(compile(wrong, "README.md", "exec"), {})


def test_every_make_target_that_is_named_exists() -> None:
    for target in re.findall(r"`?make (\w+)", README):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_the_quick_part_of_the_suite_is_there_and_holds_every_formula() -> None:
    files = [ROOT / "tests" / f"{name}.py" for name in re.search(r"^QUICK := (.*)$", MAKEFILE, re.MULTILINE)[1].split()]
    assert all(path.exists() for path in files)
    # Each public function, and a whole network, is held in one of them, and so are the commands.
    text = "".join(path.read_text() for path in files)
    for name in ("MLP", *filter(str.islower, manual_mlp.__all__)):
        assert re.search(rf"\b{name}\b", text), name
    assert "test_a_command_runs_as_it_is_pasted" in text


def test_every_link_and_every_file_of_the_layout_exists() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / link).exists(), link
    layout = re.search(r"## Layout\n\n```\n(.*?)```", README, re.DOTALL)[1]
    folder = ROOT
    for line in layout.splitlines():
        name = line.split()[0]
        if line.startswith("  "):
            assert (folder / name).exists(), name
        else:
            assert (ROOT / name).exists(), name
            folder = ROOT / name
