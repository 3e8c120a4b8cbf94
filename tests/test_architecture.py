"""The rooms, and who may enter which; what may stand in them, and how much."""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import accumulate
from pathlib import Path

import pytest

import manual_mlp

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "manual_mlp"

# Floor by floor, from the ground: a room imports rooms of the floors below it, and itself.
FLOORS = (
    {"transforms", "streams", "processes", "nearest"},
    {"precision"},
    {"activations"},
    {"formulas"},
    {"checks", "composite", "engines"},
    {"loss_checks"},
    {"dropout", "layer", "losses"},
    {"sweep"},
    {"head", "network"},
    {"output", "sequential"},
    {"cross_entropy", "modules"},
    {"language", "objectives"},
    {"loss_modules"},
    {"explicit", "doctor"},
    {"training"},
    {"explain"},
)
ROOMS = sorted(set().union(*FLOORS))
CORE = sorted(set(ROOMS) - {"training", "explain", "streams"})
BELOW = {
    room: set(below)
    for floor, below in zip(FLOORS, accumulate(FLOORS, set.union, initial=set()), strict=False)
    for room in floor
}
# Functions of torch that multiply matrices, by their names without a trailing "_", ".out" or ".default".
PRODUCTS = {
    *(
        "addbmm",
        "addmm",
        "addmv",
        "addr",
        "baddbmm",
        "bilinear",
        "bmm",
        "chain_matmul",
        "dot",
        "einsum",
        "ger",
        "inner",
    ),
    *("kron", "linear", "matmul", "mm", "multi_dot", "mv", "outer", "tensordot", "vdot"),
    *("__imatmul__", "__matmul__", "__rmatmul__"),
}
TAG = re.compile(r"\b[FBJSOT]\d\b")
CPP = sorted(file for ending in ("h", "cpp") for file in PACKAGE.rglob(f"*.{ending}"))


def files(room: str) -> list[Path]:
    file = PACKAGE / f"{room}.py"
    return [file] if file.exists() else sorted((PACKAGE / room).rglob("*.py"))


def imported(file: Path) -> set[str]:
    """List the modules that a file imports, wherever in the file, and if only for a type checker."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def tags(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the tags in comments such as "# (B1)", each with its line."""
    for token in tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            for parenthesis in re.findall(r"\(([^()]*)\)", token.string):
                for tag in TAG.findall(parenthesis):
                    yield token.start[0], tag


def tags_of_cpp(text: str) -> Counter[str]:
    """Count the tags in comments such as "// (B1)"."""
    comments = re.findall(r"//(.*)", text)
    return Counter(
        tag for comment in comments for each in re.findall(r"\(([^()]*)\)", comment) for tag in TAG.findall(each)
    )


def test_every_file_belongs_to_a_room() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert sorted(rooms - {"__init__", "__main__"}) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    public = set(manual_mlp.__all__) if room in ("training", "explain") else set()
    for file in files(room):
        for name in imported(file):
            package, _, rest = name.partition(".")
            if package == "manual_mlp" and rest:
                assert rest.split(".")[0] in BELOW[room] | {room} | public, f"{file.name} imports {name}"


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    graph = {name: (imported(path) & set(modules)) - {name, "manual_mlp"} for name, path in modules.items()}
    # A package's own page hands the names of its files on, and so is below none of them.
    faces = {name for name, path in modules.items() if path.name == "__init__.py"}
    order = TopologicalSorter({name: uses - {f for f in faces if name.startswith(f)} for name, uses in graph.items()})
    assert len(list(order.static_order())) == len(modules)


@pytest.mark.parametrize("room", [*CORE, "explain", "streams"])
def test_the_core_imports_torch_alone(room: str) -> None:
    for file in files(room):
        packages = {name.split(".")[0] for name in imported(file)} - set(sys.stdlib_module_names)
        assert packages <= {"torch", "manual_mlp"} | ({"triton"} if file.parent.name == "triton" else set()), file


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "transforms"])
def test_only_transforms_touches_private_torch(room: str) -> None:
    for file in files(room):
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)]
        # A named tuple's own methods are public, whatever their names.
        private = [ast.unparse(node) for node in nodes if re.match("_(?!(replace|asdict)$)[a-z]", node.attr)]
        # An operator of torch is public, whatever its name.
        assert all(chain.startswith(("self.", "aten.")) for chain in private), private


def products(tree: ast.AST) -> Iterator[str]:
    """Yield what multiplies matrices: operators, and functions of torch however they are called or imported."""
    for node in ast.walk(tree):
        written = ast.unparse(node) if isinstance(node, (ast.expr, ast.stmt)) else ""
        if isinstance(getattr(node, "op", None), ast.MatMult):
            yield written
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("torch", "operator"):
            yield from (alias.name for alias in node.names if alias.name in PRODUCTS)
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and re.search(r"\bformulas(\.| import )products$", written):
            yield written
        elif isinstance(node, ast.Attribute) and {node.attr, node.attr.rstrip("_")} & PRODUCTS:
            # A layer that a module or a record holds may be called linear.
            yield from [written] if node.attr != "linear" or written.startswith(("F.", "torch.")) else []


@pytest.mark.parametrize("room", sorted(set(CORE) - {"formulas", "engines"}))
def test_outside_the_formulas_and_the_engines_there_is_no_product(room: str) -> None:
    for file in files(room):
        theirs = {name for name in imported(file) if name.startswith("manual_mlp.formulas.products.")}
        assert {name.rpartition(".")[2] for name in theirs} <= {"rows", "plus"}, file
        assert not list(products(ast.parse(file.read_text()))), file


@pytest.mark.parametrize(
    "line",
    [
        "a @ b",
        "a @= b",
        "from torch import mm",
        "from torch.nn.functional import linear",
        "torch.ops.aten.mm.default(a, b)",
        "a.__matmul__(b)",
        "c.addmm_(a, b)",
        "torch.kron(a, b)",
        "F.linear(h, w)",
        "torch.mm(a, b, out=c)",
        "from manual_mlp.formulas import products",
        "import manual_mlp.formulas.products",
    ],
)
def test_a_product_is_seen_however_it_is_written(line: str) -> None:
    assert list(products(ast.parse(line)))
    assert not list(products(ast.parse("a * b + torch.sum(c)")))


def test_each_tag_stands_on_one_line_of_the_formulas_and_on_one_of_an_engine_at_most() -> None:
    lines = {file.relative_to(PACKAGE): Counter(tag for _, tag in tags(file)) for file in PACKAGE.rglob("*.py")}
    formulas = sum((count for file, count in lines.items() if file.parts[0] == "formulas"), Counter())
    assert set(formulas.values()) == {1}, formulas
    assert {"F1", "F2", "B1", "B2", "B3", "B4", "J1", "J2", "S1", "S6", "O1", "O4", "O5", "O6", "T1"} <= set(formulas)
    for file, count in lines.items():
        if file.parts[0] == "engines":
            assert set(count.values()) <= {1}, file
            assert set(count) <= set(formulas), file
        elif file.parts[0] != "formulas":
            assert not count, file


def test_native_has_the_tags_of_the_formulas_each_at_most_once_a_file() -> None:
    formulas = {tag for file in (PACKAGE / "formulas").rglob("*.py") for _, tag in tags(file)}
    document = set(
        re.findall(r"^#+ \(([A-Z]\d)\) ", (ROOT / "docs" / "derivation.md").read_text("utf-8"), re.MULTILINE)
    )
    found = {file: tags_of_cpp(file.read_text(encoding="utf-8")) for file in CPP}
    for file, count in found.items():
        assert set(count.values()) <= {1}, f"{file.name}: {count}"
        assert set(count) <= formulas & document, file.name
    # What multiplies tangents, and what is left to plain at second order, is Python's alone.
    assert formulas - set().union(*found.values()) == {"J1", "J2", "S6", "O4", "O6"}


def test_a_tag_in_cpp_is_seen_behind_a_line_alone() -> None:
    assert tags_of_cpp("y = f(z);  // (F2), (B1) and B2\nint B3 = at(S1);  // rows (N, B4)") == Counter(
        ["F2", "B1", "B4"]
    )


def test_no_file_or_line_of_cpp_is_longer_than_one_reads() -> None:
    texts = {file.name: file.read_text(encoding="utf-8").splitlines() for file in CPP}
    assert {name: len(lines) for name, lines in texts.items() if len(lines) > 300} == {}
    long = [f"{name}:{k}" for name, lines in texts.items() for k, line in enumerate(lines, 1) if len(line) > 120]
    assert long == []


def lines_of_native() -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in CPP)


@pytest.mark.xfail(strict=True, reason="native is longer than it is meant to be")
def test_native_is_no_more_than_one_reads() -> None:
    assert lines_of_native() <= 1800


def test_native_grows_no_longer() -> None:
    assert 0 < lines_of_native() <= 2960


def test_one_file_of_native_at_most_includes_all_of_torch() -> None:
    # It takes as long to compile as all others together.
    including = [
        file.name for file in CPP if re.search(r'#include [<"]torch/(extension|all|torch)\.h', file.read_text("utf-8"))
    ]
    assert len(including) <= 1, including


@pytest.mark.parametrize("room", CORE)
def test_no_function_of_the_core_takes_more_than_six_arguments(room: str) -> None:
    for file in files(room):
        tree = ast.parse(file.read_text())
        # Those of the public functions and modules are torch's, and a kernel takes its tensors one by one.
        free = [node for node in tree.body if getattr(node, "name", None) in manual_mlp.__all__]
        free += [part for node in free if isinstance(node, ast.ClassDef) for part in node.body]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node not in free and file.parent.name != "triton":
                given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                assert len([name for name in given if name not in ("self", "cls", "ctx")]) <= 6, f"{file}: {node.name}"


@pytest.mark.parametrize(("folder", "most"), [("manual_mlp", 300), ("tests", 500)])
def test_no_file_is_longer_than_one_reads(folder: str, most: int) -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in (ROOT / folder).rglob("*.py")}
    assert {str(file): length for file, length in lengths.items() if length > most} == {}


def test_the_public_names_are_listed_and_documented() -> None:
    for name in manual_mlp.__all__:
        assert getattr(manual_mlp, name).__doc__ or name == "__version__"
