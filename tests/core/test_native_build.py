"""How the C++ is built, named, kept, found and checked: by a file of the tests' own, which compiles in seconds."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils import cpp_extension

from manual_mlp.__main__ import main
from manual_mlp.engines import native
from manual_mlp.engines.native import build, cache, load
from manual_mlp.engines.native.load import Missing
from patience import SECONDS

PACKAGE = Path(__file__).parents[2] / "manual_mlp"
TINY = """
#include <Python.h>
#include <ATen/Parallel.h>
#include <mutex>
#include <set>
#include <thread>
static PyObject* threads(PyObject*, PyObject*) {
  std::set<std::thread::id> seen;
  std::mutex lock;
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    std::lock_guard<std::mutex> hold(lock);
    seen.insert(std::this_thread::get_id());
  });
  return PyLong_FromSize_t(seen.size());
}
static PyObject* hand_over(PyObject*, PyObject*) { Py_RETURN_NONE; }
static PyMethodDef methods[] = {{"threads", threads, METH_NOARGS, nullptr},
                                {"hand_over", hand_over, METH_VARARGS, nullptr},
                                {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "manual_mlp_native", nullptr, -1, methods};
PyMODINIT_FUNC PyInit_manual_mlp_native() { return PyModule_Create(&module); }
"""
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
TOOLS = os.environ.get("CXX", "c++").split()[0], "ninja"
WITHOUT_TOOLS = sys.platform != "linux" or not all(shutil.which(tool, path=PATH) for tool in TOOLS)
builds = pytest.mark.skipif(WITHOUT_TOOLS, reason="needs Linux, a C++ compiler and ninja")


@pytest.fixture(autouse=True)
def at(tmp_path, monkeypatch):
    """A folder for builds, and sources that are not the engine's."""
    for name in ("MANUAL_MLP_ENGINE", cache.FLAGS, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    at, sources = tmp_path / "cache", tmp_path / "sources"
    at.mkdir(mode=0o700)
    sources.mkdir()
    (sources / "tiny.cpp").write_text(TINY)
    monkeypatch.setenv(cache.FOLDER, str(at))
    monkeypatch.setattr(cache, "SOURCES", sources)
    return at


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package whose only file of C++ is the tests' own."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(PACKAGE, root / "manual_mlp", ignore=shutil.ignore_patterns("*.cpp", "*.h", "__pycache__"))
    (root / "manual_mlp" / "engines" / "native" / "tiny.cpp").write_text(TINY)
    return root


def start(tree, *words, at, **variables):
    """Start a command of that copy, on two threads."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MANUAL_MLP_")}
    environment |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "2", cache.FOLDER: str(at), **variables}
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tree
    )


def run(tree, *words, at, **variables):
    process = start(tree, *words, at=at, **variables)
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


BUILD = "-m", "manual_mlp", "build"


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory):
    """What the command builds of that copy, and what it says."""
    at = tmp_path_factory.mktemp("built") / "new" / "cache"
    status, out, err = run(tree, *BUILD, at=at)
    assert (status, err) == (0, "")
    return at, out


@pytest.fixture
def kept(built, at):
    """The build of the sources of these tests, in the folder of this test."""
    (made,) = built[0].iterdir()
    return Path(shutil.copy(made, at / f"{cache.name()}-c++.so"))


def test_a_name_tells_all_that_has_to_fit_and_is_found_without_a_process(monkeypatch):
    def renamed(change):
        before = cache.name()
        with monkeypatch.context() as patch:
            change(patch)
            after = cache.name()
        assert cache.name() == before
        return before != after

    assert renamed(lambda patch: patch.setattr(torch, "__version__", "2.99.0"))
    assert renamed(lambda patch: patch.setattr(torch.version, "git_version", "0" * 40))
    assert renamed(lambda patch: patch.setattr(sysconfig, "get_config_var", lambda _: "cpython-399"))
    assert renamed(lambda patch: patch.setattr(sysconfig, "get_platform", lambda: "linux-s390x"))
    assert renamed(lambda patch: patch.setattr(os, "confstr", lambda _: "glibc 9.9", raising=False))
    assert renamed(lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other"))
    assert renamed(lambda patch: patch.setenv(cache.FLAGS, "-O1"))
    assert not renamed(lambda patch: patch.setenv("CXX", "another"))
    monkeypatch.setattr(subprocess, "Popen", None)
    before = cache.name()
    for path, text in (("tiny.cpp", "int a;"), ("tiny.h", ""), ("tiny.h", "int a;")):
        (cache.SOURCES / path).write_text(text)
        assert cache.name() != before
        before = cache.name()


def test_the_flags_are_those_of_torchs_own_kernels(monkeypatch):
    for kind, expected in (("AVX512", "-mavx512f"), ("AVX2", "-mavx2"), ("VSX", None)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda kind=kind: kind)
        machine = [flag for flag in cache.flags() if flag.startswith("-m")]
        assert expected in machine if expected else machine == []
        assert f"-DCPU_CAPABILITY={kind if expected else 'DEFAULT'}" in cache.flags()
        assert ("-mavx512f" in machine) is (kind == "AVX512")
    monkeypatch.setenv(cache.FLAGS, "-O1 '-DA=b c'")
    assert cache.flags()[-2:] == ["-O1", "-DA=b c"]


def test_builds_lie_where_the_variables_say(monkeypatch, tmp_path):
    monkeypatch.delenv(cache.FOLDER)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "manual_mlp"
    assert cache.short(cache.folder()) == "~/.cache/manual_mlp"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.folder() == tmp_path / ".cache" / "manual_mlp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "manual_mlp"
    monkeypatch.setenv(cache.FOLDER, "mine")
    assert cache.folder() == Path.cwd() / "mine"


@pytest.mark.parametrize("what", ["folder", "build"])
@pytest.mark.parametrize(("whose", "said"), [("another", "to be your own"), ("all", "to be writable by you alone")])
def test_what_others_may_have_written_is_refused(at, monkeypatch, capsys, what, whose, said):
    path = at / f"{cache.name()}-c++.so"
    path.write_bytes(b"")
    target = at if what == "folder" else path
    if whose == "all":
        target.chmod(0o777)
    else:
        real = Path.stat
        theirs = SimpleNamespace(st_uid=os.geteuid() + 1, st_mode=0o40700, st_mtime=0.0)
        monkeypatch.setattr(Path, "stat", lambda self, **_: theirs if self == target else real(self))
    with pytest.raises(Missing, match=said):
        load.find()
    if what == "folder" and not WITHOUT_TOOLS:
        assert main(["build"]) == 2
        assert said in capsys.readouterr().err


def test_where_nothing_is_built_an_import_says_how_and_starts_no_process(monkeypatch, at):
    monkeypatch.setattr(subprocess, "Popen", None)
    doors, reason = native._start()
    assert doors is None
    assert "python -m manual_mlp build" in reason
    monkeypatch.setenv(cache.FOLDER, str(at / "nowhere"))
    assert native._start() == (None, reason)
    assert not (at / "nowhere").exists()


def test_an_engine_that_is_asked_for_and_is_not_there_is_an_error_at_the_first_door(monkeypatch):
    monkeypatch.setenv("MANUAL_MLP_ENGINE", "native")
    doors, reason = native._start()
    assert "not built" in reason
    with pytest.raises(RuntimeError, match="expected the native engine, for MANUAL_MLP_ENGINE=native, got none"):
        doors.layer()
    monkeypatch.setenv("MANUAL_MLP_ENGINE", "fast")
    doors, reason = native._start()
    with pytest.raises(ValueError, match="expected MANUAL_MLP_ENGINE to be plain, native or unset, got 'fast'"):
        doors.layer()


def test_without_native_for_a_while(monkeypatch):
    doors = SimpleNamespace()
    monkeypatch.setattr(native, "doors", doors)
    with native.without():
        assert native.doors is None
    assert native.doors is doors
    with pytest.raises(ZeroDivisionError), native.without():
        _ = 1 / 0
    assert native.doors is doors


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("compiler", "expected a C++ compiler, got no '/nowhere/c++': install g++, or set CXX"),
        ("ninja", "expected ninja, got none: pip install ninja"),
        ("sources", "expected *.cpp in "),
        ("Linux", "expected Linux, got plan9: elsewhere plain computes"),
        ("folder", "Not a directory"),
    ],
)
def test_where_it_cannot_be_built_one_line_says_why(monkeypatch, capsys, at, lacks, said):
    compiler = "/nowhere/c++" if lacks == "compiler" else sys.executable
    monkeypatch.setenv("CXX", compiler)
    if lacks == "ninja":
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(sysconfig, "get_path", lambda _: "")
    else:
        monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: True)
    monkeypatch.setattr(sys, "platform", "plan9" if lacks == "Linux" else "linux")
    if lacks == "sources":
        (cache.SOURCES / "tiny.cpp").unlink()
    if lacks == "folder":
        (at / "file").write_text("")
        monkeypatch.setenv(cache.FOLDER, str(at / "file" / "below"))
    assert main(["build"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert list(at.iterdir()) == ([at / "file"] if lacks == "folder" else [])


def test_the_newest_builds_are_kept_and_what_killed_ones_left_goes_when_it_is_old(at):
    for k in range(20):
        (at / f"torch-{k}.so").write_text("")
        os.utime(at / f"torch-{k}.so", (k, k))
    (at / "mine").write_text("")
    for name, age in ((".building-old", 1.0), (".building-new", None)):
        (at / name).mkdir()
        (at / name / "file").write_text("")
        if age:
            os.utime(at / name, (age, age))
    build._prune(at)
    build._sweep(at)
    names = {f"torch-{k}.so" for k in range(4, 20)}
    assert {path.name for path in at.iterdir()} == names | {"mine", ".building-new"}


def test_a_loop_that_runs_on_too_few_threads_is_seen(monkeypatch):
    here, seen = load.Thread, []

    class Watched(here):
        def start(self):
            seen.append(self)
            super().start()

    monkeypatch.setattr(load, "Thread", Watched)
    assert load._threads(SimpleNamespace(threads=torch.get_num_threads)) == (torch.get_num_threads(),) * 2
    assert len(seen) == 1
    assert not seen[0].is_alive()
    with pytest.raises(ZeroDivisionError):
        load._threads(SimpleNamespace(threads=lambda: 1 // 0))


@builds
@pytest.mark.processes
def test_what_is_built_lies_alone_in_a_folder_of_the_users_own_and_is_built_once(tree, built):
    at, said = built
    (made,) = at.iterdir()
    assert at.stat().st_mode & 0o777 == made.stat().st_mode & 0o777 == 0o700
    assert str(made) in said
    assert made.name.startswith(f"torch-{torch.__version__}-{torch.version.git_version[:10]}-")
    before = made.stat().st_ino
    status, out, err = run(tree, *BUILD, at=at)
    assert (status, out, err) == (0, f"native is built: {made}\n", "")
    assert made.stat().st_ino == before
    # Whether this process runs plain is no matter of the build.
    assert run(tree, *BUILD, at=at, MANUAL_MLP_ENGINE="plain")[:2] == (0, out)


LOADED = """
import os, torch, warnings
warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)  # Python 3.12 warns beside threads
from manual_mlp.engines import native
print(native.why(), native.doors and native.doors.threads())
if not os.fork():
    os._exit(int(torch.ones(2000, 2000).exp().sum() < 0))
print(os.wait()[1])
"""


@builds
@pytest.mark.processes
def test_an_import_loads_it_and_its_check_leaves_no_threads_that_a_forked_child_would_wait_for(tree, built):
    script = LOADED.replace("native.doors.threads()", "native.doors.__name__")
    assert run(tree, "-c", script, at=built[0]) == (0, "None manual_mlp_native\n0\n", "")
    refused = "a loop in C++ ran on 1 of torch's 2 threads"
    assert run(tree, "-c", script, at=built[0], OMP_THREAD_LIMIT="1")[1].startswith(refused)
    plain = run(tree, "-c", script, at=built[0], MANUAL_MLP_ENGINE="plain")[1]
    assert plain.startswith("MANUAL_MLP_ENGINE=plain asks for plain None\n")


IN_A_CHILD = """
import os, torch, warnings
warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)  # Python 3.12 warns beside threads
torch.ones(2000, 2000).exp()
if not os.fork():
    from manual_mlp.engines import native
    print(native.why(), flush=True)
    os._exit(0)
print(os.wait()[1])
"""


@builds
@pytest.mark.processes
def test_a_forked_child_of_a_busy_parent_can_load_it(tree, built):
    assert run(tree, "-c", IN_A_CHILD, at=built[0]) == (0, "None\n0\n", "")


@builds
@pytest.mark.processes
def test_a_build_loads_here_and_a_damaged_or_foreign_one_gives_plain_and_the_reason(kept, at):
    data = kept.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    for damaged in (b"", data[:middle], data[:-1], flipped):
        kept.write_bytes(damaged)
        doors, reason = native._start()
        assert doors is None
        assert "it is damaged; python -m manual_mlp build makes it anew" in reason
    kept.write_bytes(b"not a library")
    cache.seal(kept)
    assert "cannot be loaded" in native._start()[1]
    # Of two that fit, one by another compiler, the newest that works is taken.
    other = at / kept.name.replace("c++.so", "clang.so")
    other.write_bytes(data)
    os.utime(other, (1, 1))
    module = load.find()
    assert module.__file__ == str(other)
    assert module.threads() == torch.get_num_threads()
    other.rename(at / other.name.replace(torch.__version__, "2.0.0"))
    assert "cannot be loaded" in native._start()[1]


@builds
@pytest.mark.processes
def test_a_killed_build_and_two_at_once_do_no_harm(tree, at):
    killed = start(tree, *BUILD, at=at)
    assert killed.stdout.readline().startswith("building native: ")
    killed.kill()
    killed.communicate()
    assert all(path.name.startswith(".building-") for path in at.iterdir())
    both = [start(tree, *BUILD, at=at) for _ in range(2)]
    try:
        assert [(process.communicate(timeout=SECONDS)[1], process.returncode) for process in both] == [("", 0)] * 2
    finally:
        for process in both:
            process.kill()
    assert len([path for path in at.iterdir() if path.suffix == ".so"]) == 1
    assert run(tree, "-c", LOADED.split("if not")[0], at=at) == (0, "None 2\n", "")


@builds
@pytest.mark.processes
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("-fno-openmp", "what was built does not work: a loop in C++ ran on 1 of torch's 2 threads"),
        ("-DPyInit_manual_mlp_native=other", "what was built does not work: "),
        ("-include nowhere.h", "nowhere.h: No such file or directory"),
    ],
)
def test_what_does_not_compile_or_work_is_reported_and_not_kept(tree, at, flags, said):
    status, _, err = run(tree, *BUILD, at=at, **{cache.FLAGS: flags})
    assert status == 1
    assert said in err
    assert "Traceback" not in err
    assert list(at.iterdir()) == []


def damage(path):
    """Put a file of another length in its place: what is loaded stays as it is."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1])
    path.chmod(0o700)


@builds
@pytest.mark.processes
def test_what_the_package_carries_is_loaded_where_it_fits_after_the_users_own(kept, at, monkeypatch):
    carried = cache.SOURCES / cache.CARRIED / kept.name
    carried.parent.mkdir()
    shutil.copy(kept, carried)
    # Whoever wrote the Python beside it may have written it.
    carried.chmod(0o664)
    assert load.find().__file__ == str(kept)
    damage(kept)
    assert load.find().__file__ == str(carried)
    at.chmod(0o777)
    assert load.find().__file__ == str(carried)
    monkeypatch.setenv(cache.FOLDER, str(at / "nowhere"))
    module = load.find()
    assert module.__file__ == str(carried)
    assert module.threads() == torch.get_num_threads()
    damage(carried)
    assert "it is damaged" in native._start()[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda patch: patch.setattr(torch, "__version__", "2.0.0"), "torch"),
        (lambda patch: patch.setattr(torch.version, "git_version", "0" * 40), "torch"),
        (lambda patch: patch.setattr(sysconfig, "get_config_var", lambda _: "cpython-399"), "Python"),
        (lambda patch: patch.setattr(os, "confstr", lambda _: "glibc 9.9", raising=False), "C library"),
        (
            lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other"),
            "vector instructions, another sources or flags",
        ),
        (lambda patch: (cache.SOURCES / "tiny.h").write_text("int a;"), "sources or flags"),
    ],
)
def test_what_the_package_carries_and_does_not_fit_gives_plain_and_says_for_what_it_is(monkeypatch, change, said):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    at = cache.SOURCES / cache.CARRIED
    at.mkdir()
    carried = at / f"{cache.name()}-c++.so"
    carried.write_bytes(b"")
    (at / "torch-1.0-for-nobody.so").write_bytes(b"")
    assert [path.name for path in cache.carried()] == [carried.name]
    change(monkeypatch)
    assert cache.carried() == []
    doors, reason = native._start()
    assert doors is None
    assert reason == f"this package carries a build for another {said}: {carried.name}: python -m manual_mlp build"


def archive(tree, at):
    """A pure wheel of a tree."""
    with zipfile.ZipFile(at / "manual_mlp-7.0-py3-none-any.whl", "w") as file:
        for path in (tree / "manual_mlp").rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                file.write(path, path.relative_to(tree))
        information = {
            "METADATA": "Metadata-Version: 2.4\nName: manual_mlp\nVersion: 7.0\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }
        for name, text in information.items():
            file.writestr(f"manual_mlp-7.0.dist-info/{name}", text)
    return Path(file.filename)


@builds
@pytest.mark.processes
def test_a_platform_wheel_needs_no_compiler_where_it_fits(tree, built, tmp_path):
    status, out, err = run(tree, *BUILD, "--wheel", str(archive(tree, tmp_path)), at=built[0])
    assert (status, err) == (0, "")
    (made,) = tmp_path.glob("*-linux_*.whl")
    assert f"platform wheel: {made} (" in out
    installed, nowhere = tmp_path / "installed", tmp_path / "nowhere"
    with zipfile.ZipFile(made) as file:
        file.extractall(installed)
    (carried,) = (installed / "manual_mlp" / "engines" / "native" / "built").iterdir()
    without = {"at": nowhere, "CXX": str(nowhere / "c++")}
    script = (
        "from manual_mlp.__main__ import main\n"
        "from manual_mlp.engines import native\n"
        "print(native.why(), native.doors.__file__)\n"
        "main(['build'])"
    )
    said = f"None {carried}\nnative is built: {carried}\n"
    assert run(installed, "-c", script, **without) == (0, said, "")
    assert not nowhere.exists()
