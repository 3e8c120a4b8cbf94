"""What a user sees: the public names and no others, none of which hides another."""

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import manual_mlp
from manual_mlp import activations

ROOT = Path(__file__).parents[1]
MODULES = [found.name for found in pkgutil.walk_packages(manual_mlp.__path__, "manual_mlp.")]
PUBLIC = {manual_mlp: manual_mlp.__all__, activations: activations.__all__}


@pytest.mark.parametrize("name", MODULES)
def test_the_attribute_of_a_modules_name_is_the_module(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"no {error.name}")
    package, _, last = name.rpartition(".")
    assert getattr(sys.modules[package], last) is module


@pytest.mark.parametrize("package", PUBLIC, ids=lambda package: package.__name__)
def test_no_public_name_is_that_of_a_module_beside_it(package: ModuleType) -> None:
    beside = {found.name for found in pkgutil.iter_modules(package.__path__)}
    for name in PUBLIC[package]:
        assert name not in beside or isinstance(getattr(package, name), ModuleType), name


@pytest.mark.parametrize("package", PUBLIC, ids=lambda package: package.__name__)
def test_completion_shows_the_public_names_alone_and_each_is_there(package: ModuleType) -> None:
    assert set(dir(package)) - {"__version__"} == set(PUBLIC[package])
    assert len(PUBLIC[package]) == len(set(PUBLIC[package]))
    star: dict[str, object] = {}
    exec(f"from {package.__name__} import *", star)
    assert {name: star[name] for name in PUBLIC[package]} == {name: getattr(package, name) for name in PUBLIC[package]}
    with pytest.raises(AttributeError, match="no attribute 'nobody'"):
        package.nobody  # noqa: B018


def test_a_fresh_process_completes_the_same_whatever_else_it_imports() -> None:
    code = (
        "import manual_mlp, manual_mlp.explain, manual_mlp.training.export, manual_mlp.activations.registry\n"
        "print(dir(manual_mlp), dir(manual_mlp.activations), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{dir(manual_mlp)}\n{dir(activations)}\n"


@pytest.mark.usefixtures("forget")
def test_an_activation_that_is_registered_is_an_attribute_and_forgotten_with_its_name(forget) -> None:
    @activations.register
    def half() -> manual_mlp.Activation:
        return manual_mlp.Activation(lambda z: z / 2, lambda z: 0 * z + 0.5, lambda z: 0 * z)

    assert activations.half is half
    assert "half" in dir(activations)
    forget()
    assert not hasattr(activations, "half")
    assert "half" not in dir(activations)


def test_the_version_is_told_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", manual_mlp.__version__)
    project = (ROOT / "pyproject.toml").read_text().split("[project]\n")[1].split("\n[")[0]
    assert 'dynamic = ["version"]' in project
    assert not re.search("^version", project, re.MULTILINE)
    setuptools = pytest.importorskip("setuptools.config.pyprojecttoml")
    assert setuptools.read_configuration(ROOT / "pyproject.toml")["project"]["version"] == manual_mlp.__version__
