"""What the README shows is true."""

import re
import subprocess
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
    for target in re.findall(r"`?make ([\w-]+)", README):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def recipe(target: str) -> str:
    return re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]


def test_the_quick_part_of_the_suite_is_there_and_holds_every_function() -> None:
    paths = [ROOT / word for word in recipe("quick").split() if word.startswith("tests")]
    files = [file for path in paths for file in ([path] if path.suffix else path.glob("test_*.py"))]
    assert ROOT / "tests" / "core" in paths
    assert all(file.exists() for file in files)
    text = "".join(file.read_text() for file in files)
    for name in manual_mlp.__all__:
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", text), name


def test_make_test_leaves_no_file_out_and_ci_runs_a_fifth_of_the_rest_of_the_products_after_it() -> None:
    assert "tests" not in recipe("test") + recipe("test-all")
    assert "--cases=all" in recipe("test-all")
    commands = re.findall(r"^make (.*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert commands[:2] == ["lint", "test"]
    assert commands[3].startswith("train ")
    rest = re.fullmatch(r'test-all ARGS="--cases=rest --part=(.*)/5"', commands[2])
    asked = "$(git log -1 --format=%ct || echo 0)"
    assert asked in rest[1]
    parts = [
        subprocess.check_output(["bash", "-c", f"echo {rest[1].replace(asked, str(second))}"]) for second in range(7)
    ]
    assert [int(part) for part in parts] == [1, 2, 3, 4, 5, 1, 2]


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
