"""The rooms, and who may enter which."""

import ast
import re
import sys
from pathlib import Path

import pytest

import manual_mlp

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "manual_mlp"

# Each room may import those listed, and itself.
GROUND = {"activations", "transforms"}
BELOW_BACKPROP = GROUND | {
    *("rules", "dense", "dropout", "losses", "chunks", "fused", "output", "tiles", "sweep", "network")
}
ROOMS = {
    "activations": set(),
    "transforms": set(),
    "rules": GROUND,
    "engines": set(),
    "streams": set(),
    "dropout": GROUND | {"rules", "engines"},
    "dense": GROUND | {"rules"},
    "losses": GROUND | {"dense"},
    "chunks": set(),
    "fused": GROUND | {"rules", "dense", "losses", "chunks"},
    "output": GROUND | {"rules", "dense", "losses", "fused"},
    "tiles": {"chunks"},
    "sweep": GROUND | {"rules", "dropout", "tiles"},
    "network": GROUND | {"rules", "dense", "dropout", "fused", "sweep", "tiles"},
    "backprop": BELOW_BACKPROP | {"modules"},
    "sequential": GROUND,
    "modules": GROUND | {"dense", "dropout", "output", "network", "sequential", "sweep"},
    "loss_modules": GROUND | {"modules", "output", "sequential"},
    "explain": GROUND | {"rules", "losses", "modules", "training"},
    "training": GROUND | {"backprop", "dense", "output", "modules"},
}
CORE = set(ROOMS) - {"training"}


def files(room: str) -> list[Path]:
    file = PACKAGE / f"{room}.py"
    return [file] if file.exists() else sorted((PACKAGE / room).rglob("*.py"))


def imported(file: Path) -> set[str]:
    """List the modules that a file imports, wherever in the file, but for what only a type checker reads."""
    found: set[str] = set()
    tree = ast.parse(file.read_text())
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    unread = {id(node) for block in for_types for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in unread:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module)
            if node.module == "manual_mlp":
                found |= {f"manual_mlp.{alias.name}" for alias in node.names}
    return found


def test_every_file_belongs_to_a_room() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__", "__main__"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    public = {name.rpartition(".")[2] for name in manual_mlp.__all__} if room == "training" else set()
    for file in files(room):
        for name in imported(file):
            package, _, rest = name.partition(".")
            if package == "manual_mlp" and rest:
                assert rest.split(".")[0] in ROOMS[room] | {room} | public, f"{file.name} imports {name}"


@pytest.mark.parametrize("room", sorted(CORE))
def test_the_core_imports_torch_alone(room: str) -> None:
    for file in files(room):
        packages = {name.split(".")[0] for name in imported(file)} - set(sys.stdlib_module_names)
        assert packages <= {"torch", "manual_mlp"} | ({"triton"} if file.parent.name == "triton" else set()), file


@pytest.mark.parametrize("room", sorted(set(ROOMS) - {"transforms"}))
def test_only_transforms_touches_private_torch(room: str) -> None:
    for file in files(room):
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)]
        # A named tuple's own methods are public, whatever their names.
        private = [ast.unparse(node) for node in nodes if re.match("_(?!(replace|asdict)$)[a-z]", node.attr)]
        # An operator of torch is public, whatever its name.
        assert all(chain.startswith(("self.", "aten.")) for chain in private), private


def test_the_public_names_are_listed_and_documented() -> None:
    for name in manual_mlp.__all__:
        assert getattr(manual_mlp, name).__doc__


@pytest.mark.parametrize(("folder", "most"), [(PACKAGE, 300), (ROOT / "tests", 500)], ids=["manual_mlp", "tests"])
def test_no_file_is_longer_than_one_reads_in_one_go(folder: Path, most: int) -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in folder.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > most} == {}
