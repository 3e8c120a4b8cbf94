"""What the README shows is true."""

import re
import subprocess
from pathlib import Path

import pytest

import manual_mlp
from benchmarks import report

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


def test_make_test_leaves_no_file_out_and_ci_runs_a_tenth_of_the_rest_of_the_products_after_it() -> None:
    assert "tests" not in recipe("test") + recipe("test-all")
    assert "--cases=all" in recipe("test-all")
    commands = re.findall(r"^make (.*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert commands[:2] == ["lint", "test"]
    assert commands[3].startswith("train ")
    rest = re.fullmatch(r'test-all ARGS="--cases=rest --part=(.*)/10"', commands[2])
    asked = "$(git log -1 --format=%ct || echo 0)"
    assert asked in rest[1]
    parts = [
        subprocess.check_output(["bash", "-c", f"echo {rest[1].replace(asked, str(second))}"]) for second in range(12)
    ]
    assert [int(part) for part in parts] == [*range(1, 11), 1, 2]


def test_it_is_a_screen_and_a_half_and_what_one_needs_first_stands_on_the_first_screen() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    first = "\n".join(lines[:32])
    for needed in ("Y = f(HW + B)", "pip install .", "make train", "make test", "```python", "assert torch.allclose("):
        assert needed in first
    assert re.search(r"^!\[.*\]\(docs/explain\.png\)$", README, re.MULTILINE)
    headings = re.findall(r"^## (.*)$", README, re.MULTILINE)
    for wanted in ("For whom", "Use", "Explain", "Train", "Limits", "Where to read on"):
        assert wanted in headings


def test_its_table_has_a_dozen_rows_and_torch_is_faster_in_some() -> None:
    table = re.search(r"<!-- report: summary -->(.*?)<!-- end -->", README, re.DOTALL)[1]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("|")][2:]
    assert 10 <= len(rows) <= 14
    speeds = [float(row[2].rstrip("~")) for row in rows]
    assert min(speeds) < 1 < max(speeds)


def test_the_tables_of_figures_are_what_the_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--check"]) == 0, capsys.readouterr()


def test_every_link_exists() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / link).exists(), link
