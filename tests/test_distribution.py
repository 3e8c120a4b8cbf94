"""What is handed on: the source archive, the pure wheel and the platform wheel hold what they should, and no more."""

import base64
import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import manual_mlp
from manual_mlp.engines.native import cache, wheel

ROOT = Path(__file__).parents[1]
VERSION = manual_mlp.__version__
LEFT_OUT = (".*", "*.egg-info", "__pycache__", "build", "data", "dist", "runs", "explain.html", "site")
NATIVE = "manual_mlp/engines/native"
# What make quick runs, and reads.
QUICK = (
    "Makefile",
    "pyproject.toml",
    "docs/derivation.md",
    "tests/conftest.py",
    "tests/core/test_dense.py",
    "train.py",
)
TEXTS = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md", "docs/versions.md")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def made(tree: Path, kind: str, at: Path) -> Path:
    """Let setuptools make an archive of a tree, as python -m build --no-isolation does."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(at)!r})"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True, env=environment)
    (path,) = at.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of this tree without what was made in it."""
    pytest.importorskip("setuptools.build_meta")
    at = tmp_path_factory.mktemp("tree") / "manual_mlp"
    shutil.copytree(ROOT, at, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (at / "runs").mkdir()
    (at / "runs" / ".gitkeep").touch()
    return at


@pytest.fixture(scope="module")
def source(tree, tmp_path_factory):
    """The source archive, unpacked."""
    before = files(tree)
    at = tmp_path_factory.mktemp("sdist")
    path = made(tree, "sdist", at)
    assert path.name == f"manual_mlp-{VERSION}.tar.gz"
    with tarfile.open(path) as archive:
        assert {name.partition("/")[0] for name in archive.getnames()} == {f"manual_mlp-{VERSION}"}
        archive.extractall(at, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    assert files(tree) - before <= {f"manual_mlp.egg-info/{name}" for name in files(tree / "manual_mlp.egg-info")}
    return at / f"manual_mlp-{VERSION}"


@pytest.fixture(scope="module")
def pure(source, tmp_path_factory):
    """The pure wheel, made of the source archive."""
    return made(source, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(pure, tmp_path_factory):
    at = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(pure) as archive:
        archive.extractall(at)
    return at


@pytest.mark.processes
def test_the_source_archive_is_the_tree_without_its_pictures_and_hidden_files(tree, source):
    found = {name for name in files(source) if "egg-info" not in name} - {"PKG-INFO", "setup.cfg"}
    left_out = ("egg-info", "docs/_build/")
    expected = {
        name
        for name in files(tree)
        if not name.endswith(".png") and name[0] != "." and not any(part in name for part in left_out)
    }
    assert found == expected
    assert {*QUICK, *TEXTS} <= found
    assert sum((source / name).stat().st_size for name in found) < 6e6


@pytest.mark.processes
def test_the_wheel_is_the_package_for_any_python_and_nothing_else(tree, pure, unpacked):
    assert pure.name == f"manual_mlp-{VERSION}-py3-none-any.whl"
    information = f"manual_mlp-{VERSION}.dist-info"
    told = {f"{information}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "top_level.txt", "licenses/LICENSE")}
    found = files(unpacked)
    assert found - told == {f"manual_mlp/{name}" for name in files(tree / "manual_mlp")}
    assert told <= found
    endings = {Path(name).suffix for name in found - told}
    assert endings == {".py", ".typed", ".css", ".js", ".cpp", ".h"}
    metadata = (unpacked / information / "METADATA").read_text("utf-8")
    for line in ("Requires-Python: >=3.10", "Requires-Dist: torch>=2.11", "License-Expression: MIT"):
        assert f"\n{line}\n" in metadata
    assert re.findall(r"^Requires-Dist: [^;\n]*$", metadata, re.MULTILINE) == ["Requires-Dist: torch>=2.11"]
    assert set(re.findall(r":: (3\.\d+)$", metadata, re.MULTILINE)) == {"3.10", "3.11", "3.12", "3.13"}
    assert "Home-page" not in metadata


@pytest.mark.processes
def test_an_unpacked_wheel_imports_from_there_with_its_page_and_its_sources(unpacked, tmp_path):
    code = (
        "import manual_mlp, sys\n"
        "from manual_mlp.__main__ import main\n"
        "from manual_mlp.engines.native import cache\n"
        "print(manual_mlp.__file__, len(cache.sources('.cpp')), len(cache.sources('.h')))\n"
        "sys.exit(main(['explain', '--html', 'page.html']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "MANUAL_MLP_ENGINE": "plain", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    native = ROOT / NATIVE
    counts = f"{len(list(native.glob('*.cpp')))} {len(list(native.glob('*.h')))}"
    assert done.stdout.startswith(f"{unpacked / 'manual_mlp' / '__init__.py'} {counts}\n")
    page = (tmp_path / "page.html").read_text("utf-8")
    for name in ("page.css", "page.js"):
        assert (ROOT / "manual_mlp" / "explain" / name).read_text("utf-8").splitlines()[0] in page


@pytest.fixture
def builds(tmp_path, monkeypatch):
    """A folder with something that is named and sealed as a build is, for two sets of vector instructions."""
    at = tmp_path / "cache"
    at.mkdir(mode=0o700)
    monkeypatch.setenv(cache.FOLDER, str(at))
    monkeypatch.delenv(cache.FLAGS, raising=False)
    for kind in ("AVX512", "AVX2"):
        path = at / f"{cache.name(kind)}-c++.so"
        path.write_bytes(kind.encode() * 100)
        cache.seal(path)
    return at


@pytest.mark.processes
def test_a_platform_wheel_is_the_pure_one_with_what_is_built_under_a_name_of_its_torch(pure, builds, tmp_path):
    given = Path(shutil.copy(pure, tmp_path))
    made = wheel.carry(given)
    release = re.sub("[^a-z0-9]+", ".", torch.__version__)
    soabi = str(sysconfig.get_config_var("SOABI"))
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert made.name.startswith(f"manual_mlp-{VERSION}+torch{release}-{python}-cp{soabi.split('-')[1]}-linux_")
    assert made.parent == given.parent
    tags = pytest.importorskip("packaging.tags")
    names = pytest.importorskip("packaging.utils")
    _, version, _, tag = names.parse_wheel_filename(made.name)
    assert tag <= set(tags.sys_tags())
    assert str(version) == f"{VERSION}+torch{release}"
    with zipfile.ZipFile(given) as old, zipfile.ZipFile(made) as new:
        assert new.testzip() is None
        before = {name.replace(f"-{VERSION}.", f"-{version}."): old.read(name) for name in old.namelist()}
        after = {name: new.read(name) for name in new.namelist()}
    folder = f"manual_mlp-{version}.dist-info"
    assert after.keys() - before.keys() == {f"{NATIVE}/built/{path.name}" for path in builds.iterdir()}
    assert before.keys() <= after.keys()
    changed = {name for name, data in before.items() if after[name] != data}
    assert changed == {f"{folder}/{name}" for name in ("METADATA", "WHEEL", "RECORD")}
    assert f"\nVersion: {version}\n" in after[f"{folder}/METADATA"].decode()
    said = after[f"{folder}/WHEEL"].decode()
    assert "Root-Is-Purelib: false\n" in said
    assert re.findall("^Tag: (.*)$", said, re.MULTILINE) == [str(t) for t in tag]
    rows = list(csv.reader(after[f"{folder}/RECORD"].decode().splitlines()))
    assert {row[0] for row in rows} == after.keys()
    for name, digest, size in rows:
        if name != f"{folder}/RECORD":
            found = base64.urlsafe_b64encode(hashlib.sha256(after[name]).digest()).decode().rstrip("=")
            assert (digest, int(size)) == (f"sha256={found}", len(after[name]))
    # The same again gives the same bytes.
    first = made.read_bytes()
    assert wheel.carry(given).read_bytes() == first


@pytest.mark.processes
def test_what_cannot_be_made_a_platform_wheel_of_is_refused(pure, builds, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"expected a pure wheel, .*got other-cp311-cp311-linux_x86_64\.whl"):
        wheel.carry(tmp_path / "other-cp311-cp311-linux_x86_64.whl")
    broken = tmp_path / "broken-py3-none-any.whl"
    broken.write_text("no archive")
    with pytest.raises(ValueError, match="expected a wheel, got "):
        wheel.carry(broken)
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr(f"{NATIVE}/layer.cpp", "int a;")
    with pytest.raises(ValueError, match=r"expected a wheel with the sources of C\+\+ that are built here"):
        wheel.carry(broken)
    monkeypatch.setenv(cache.FLAGS, "-O1")
    with pytest.raises(ValueError, match="expected MANUAL_MLP_NATIVE_FLAGS to be unset for a wheel, got '-O1'"):
        wheel.carry(pure)
    monkeypatch.delenv(cache.FLAGS)
    for path in builds.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileNotFoundError, match="expected a build to carry, got none"):
        wheel.carry(pure)


def test_changelog_citation_and_package_tell_one_version_and_one_date():
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^## \[(.*?)\](?: - (\d{4}-\d\d-\d\d))?$", changes, re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    version, date = headings[1]
    assert version == VERSION
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    told = dict(re.findall(r"^([\w-]+): (.+)$", citation, re.MULTILINE))
    assert (told["cff-version"], told["version"], told["date-released"]) == ("1.2.0", version, date)
    assert set(re.findall("^### (.*)$", changes, re.MULTILINE)) <= {
        *("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"),
    }
    assert len(changes.splitlines()) <= 80
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert re.findall('^authors = .*name = "(.*)"', project, re.MULTILINE) == re.findall("- name: (.*)", citation)
    assert told["license"] == re.search('^license = "(.*)"', project, re.MULTILINE)[1]
