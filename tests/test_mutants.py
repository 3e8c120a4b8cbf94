"""The mutants: each tagged line has some, what no test sees is told, and the tree is left as it was."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from mutants.drawn import draw
from mutants.source import Source, sources
from mutants.tagged import of_tagged_lines
from patience import SECONDS

ROOT = Path(__file__).parents[1]
TOY = '''
    """δ and ∂ take more bytes than letters."""


    def double(x):
        return 2.0 * x  # (F1)


    def triple(x, more):
        if more:  # δ
            x = 3.0 * x  # (B1, B2)
        return x
'''
TESTS = """
    from manual_mlp.toy import double, triple


    def test_double():
        assert double(3.0) == 6.0


    def test_triple_runs():
        triple(3.0, more=True)


    def test_red():
        assert False
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    for name, text in {"manual_mlp/__init__.py": "", "manual_mlp/toy.py": TOY, "tests/test_toy.py": TESTS}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
    return tmp_path


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], Source]:
    def make(text: str) -> Source:
        (tmp_path / "manual_mlp").mkdir()
        (tmp_path / "manual_mlp" / "toy.py").write_text(text, encoding="utf-8")
        return Source(tmp_path, "manual_mlp/toy.py")

    return make


@pytest.fixture(scope="module")
def package() -> dict[str, Source]:
    return {source.path: source for source in sources(ROOT)}


def mutants(root: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mutants", "--root", str(root), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_what_no_test_sees_is_told_and_the_tree_is_left_as_it_was(toy: Path) -> None:
    before = (toy / "manual_mlp" / "toy.py").read_bytes()
    done = mutants(toy, "--tagged")
    assert done.returncode == 1, done.stderr
    killed = [line for line in done.stdout.splitlines() if "killed by" in line]
    assert [line.split()[2] for line in killed] == ["tests/test_toy.py::test_double"] * 2
    survivors = [line for line in done.stdout.splitlines() if line.startswith("SURVIVED")]
    assert len(survivors) == 2
    assert all("manual_mlp/toy.py:10: " in line for line in survivors)
    assert "4 mutants, 2 survived" in done.stdout
    assert "red without a mutant: tests/test_toy.py::test_red" in done.stdout
    assert (toy / "manual_mlp" / "toy.py").read_bytes() == before


def test_where_every_mutant_is_seen_the_status_is_0(toy: Path) -> None:
    done = mutants(toy, "--tagged", "--only", "2.0", "--jobs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 mutants, 0 survived" in done.stdout


def test_a_test_whose_process_a_mutant_ends_has_seen_it(toy: Path) -> None:
    text = (
        "import os\n\n\ndef double(x):\n    y = 2.0 * x  # (F1)\n    if y != 6.0:\n        os.abort()\n    return y\n"
    )
    (toy / "manual_mlp" / "toy.py").write_text(f"{text}\n\ndef triple(x, more):\n    return x\n")
    done = mutants(toy, "--tagged")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed by tests/test_toy.py::test_double") == 2


def test_a_test_that_is_red_without_a_mutant_sees_none(toy: Path) -> None:
    # The record is older than what makes the test red.
    mutants(toy, "--tagged")
    (toy / "tests" / "test_toy.py").write_text(textwrap.dedent(TESTS).replace("6.0", "7.0"))
    done = mutants(toy, "--tagged", "--only", "2.0")
    assert done.returncode == 1
    assert "2 mutants, 2 survived" in done.stdout
    assert "red without a mutant: tests/test_toy.py::test_double" in done.stdout


def test_every_tagged_line_of_the_package_has_a_mutant_of_its_value_and_another(package: dict[str, Source]) -> None:
    lines = {(path, line): of for path, source in package.items() for line, of in of_tagged_lines(source).items()}
    assert len(lines) > 15
    assert [place for place, found in lines.items() if len(found) < 2] == []


def test_sixty_others_are_drawn_all_over_the_package_and_the_same_each_time(package: dict[str, Source]) -> None:
    drawn = draw([*package.values()], 60, seed=0)
    assert len({*drawn}) == 60
    assert drawn == draw([*package.values()], 60, seed=0)
    assert {mutant.path.split("/")[1] for mutant in drawn} >= {"training", "explain", "activations"}
    for mutant in drawn:
        assert mutant.compiles(package[mutant.path].bytes)
        assert mutant.line not in package[mutant.path].tagged_lines()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("d = a * b  # (B1)", ["(1.01 * (a * b))", "a + b"]),
        ("d = a @ b  # (B2)", ["(1.01 * (a @ b))", "a @ (b).flip(0)"]),
        ("d = a.sum(0) if c else None  # (B4)", ["if v is None else 1.01 * v)(a.sum(0))", "a.mean(0)"]),
        ("d, e = (a * b), (a - b)  # (B1, S3)", ["(1.01 * (a * b))", "(1.01 * (a - b))", "(a + b)"]),
        ("d += f(a)  # (T1)", ["1.01 * v)(f(a))", "d -= f(a)"]),
        ("product(a, b, out=c, plus=c)  # (B3)", ["(1.01 * (b))", "product(a, b, out=c)"]),
        ("add_outer(total, a, b)  # (B3)", ["(1.01 * (b))", "(a).flip(0)"]),
        ("total.add_(a)  # (B4)", ["(1.01 * (a))", "total.sub_(a)"]),
        ("return_ = total.add_(a)  # (T1)", ["(1.01 * (a))", "total.sub_(a)"]),
        ("d = add(f, (a, b), (c, d), total=e)  # (S4)", ["1.01 * v)(add(", "add(f, (a, b), total=e)"]),
        ("return_ = db_of(r, total)  # (S6)", ["db_of((1.01 * (r)), total)", "db_of((-(r)), total)"]),
        ("d = g(a)  # (F2)", ["1.01 * v)(g(a))", "-v)(g(a))"]),
    ],
)
def test_a_tagged_line_is_made_wrong_in_value_and_in_kind(
    made: Callable[[str], Source], line: str, expected: list[str]
) -> None:
    source = made(f"δ = 1\n{line}\n")
    (found,) = of_tagged_lines(source).values()
    for mutant, text in zip(found, expected, strict=True):
        assert text in mutant.applied(source.bytes).decode().splitlines()[1]


def test_no_annotation_docstring_or_message_is_drawn(made: Callable[[str], Source]) -> None:
    text = 'def f(a: "x < 1") -> "x < 1":\n    """1 < 2."""\n    raise ValueError(f"{1 < 2}", a < 1)\n'
    assert {mutant.text for mutant in draw([made(text)], 9, 0)} == {"TypeError", "pass"}
