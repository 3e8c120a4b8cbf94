"""The command ``python -m manual_mlp build``: compile the formulas in C++, try them, and keep them for this user."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manual_mlp.engines.native import cache, wheel
from manual_mlp.engines.native.load import Missing, find

_KEPT = 16  # builds, for other torches, Pythons and states of the sources
_TEMPORARY, _OLD = ".building-", 3600.0  # seconds
_VECTORS = ("formulas", "kernels", "losses")  # the files that do not ask for autograd's headers
_DESCRIPTION = """\
Compile the formulas in C++ with the compiler that is there (CXX, or c++) and ninja, and keep the result in a folder of
your own, for this torch and Python: MANUAL_MLP_CACHE, or manual_mlp in XDG_CACHE_HOME or ~/.cache. It is used from the
next import on. MANUAL_MLP_NATIVE_FLAGS adds flags, at the build and at the import. MAX_JOBS: compilers at once.

--wheel takes a pure wheel of this package and writes a platform wheel beside it, which carries what is built for this
torch and Python: where it fits, no compiler is needed, and elsewhere plain computes. With ATEN_CPU_CAPABILITY=avx2, a
build before it makes one for processors without AVX-512, which is carried too.

The exit status is 0 if it is built, 1 if what was built does not work, and 2 if it cannot be built here."""

# What is built has to run on two threads, whatever this process may use.
_TRIAL = """
import sys, torch
from pathlib import Path
from manual_mlp.engines.native.load import Missing, load
torch.set_num_threads(2)
try:
    load(Path(sys.argv[1]))
except Missing as error:
    sys.exit(str(error))
"""


class Failed(Exception):
    """The sources do not compile, or what was built does not work."""


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its options to those of ``python -m manual_mlp``."""
    parser = commands.add_parser(
        "build",
        help="compile the formulas in C++, once, for the native engine",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--force", action="store_true", help="build it anew, though it is built")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="a pure wheel, to be made a platform wheel of")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    status = _built(options)
    if options.wheel and status == 0:
        made = wheel.carry(options.wheel)
        print(f"platform wheel: {cache.short(made)} ({made.stat().st_size / 1e6:.1f} MB)")
    return status


def _built(options: argparse.Namespace) -> int:
    if not options.force:
        try:
            built = cache.short(find().__file__)
        except Missing:
            pass
        else:
            print(f"native is built: {built}")
            return 0
    begin = time.perf_counter()
    try:
        path = build()
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = path.stat().st_size / 1e6
    print(f"native is built, in {time.perf_counter() - begin:.0f} s: {cache.short(path)} ({size:.1f} MB)")
    return 0


def build() -> Path:
    """Build, try and keep it; return where it is.

    Raises:
        Failed: it does not compile, or does not work.
        ValueError: this is not Linux.
        OSError: there are no sources, no compiler, no ninja, or no folder for it.
    """
    if sys.platform != "linux":
        raise ValueError(f"expected Linux, got {sys.platform}: elsewhere plain computes")
    written = cache.sources(".cpp")
    if not written:
        raise FileNotFoundError(f"expected *.cpp in {cache.short(cache.SOURCES)}, got none")
    command, version = _compiler()
    at, name = cache.folder(), f"{cache.name()}-{version}.so"
    at.mkdir(mode=0o700, parents=True, exist_ok=True)
    cache.trust(at)
    _sweep(at)
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=at, ignore_cleanup_errors=True) as temporary:
        print(f"building native: {version}, {cache.capability()}, {len(written)} files", flush=True)
        made = _compile(written, Path(temporary))
        cache.seal(made)
        _try(made, command)
        # A file of that name is replaced at once, and who has loaded it keeps it.
        os.rename(made, at / name)
    _prune(at)
    return at / name


@contextmanager
def _environment() -> Iterator[None]:
    """Let compilers find ninja in a virtual environment that is not activated, take all cores, and preload nothing."""
    before = {name: os.environ.get(name) for name in ("PATH", "MAX_JOBS", "LD_PRELOAD")}
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    os.environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
    os.environ.pop("LD_PRELOAD", None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def compiler() -> list[str]:
    """Return the command of the compiler that torch takes."""
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


@_environment()
def _compiler() -> tuple[list[str], str]:
    """Return the compiler's command, and what it is; see that ninja is there too."""
    # It warns of GPUs that nobody asks for.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils import cpp_extension

    command = compiler()
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"expected a C++ compiler, got no {shlex.join(command)!r}: install g++, or set CXX")
    if not cpp_extension.is_ninja_available():
        raise FileNotFoundError("expected ninja, got none: pip install ninja")
    said = _output([*command, "--version"]).partition("\n")[0]
    return command, "-".join(re.findall(r"[\w.+]+", said))[:60]


@_environment()
def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise OSError(f"{shlex.join(command)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


@_environment()
def _units(written: Sequence[Path], temporary: Path) -> list[str]:
    """Put the sources together into two, which are compiled side by side and read torch's headers once each."""
    units: dict[str, list[Path]] = {}
    for path in written:
        units.setdefault("vectors" if path.stem in _VECTORS else "nodes", []).append(path)
    for name, paths in units.items():
        (temporary / f"{name}.cpp").write_text("".join(f'#include "{path}"\n' for path in paths))
    return [str(temporary / f"{name}.cpp") for name in units]


def _compile(written: Sequence[Path], temporary: Path) -> Path:
    from torch.utils import cpp_extension

    # As a program, which torch does not load: its name is an executable's, and what makes it a module is said here.
    # GNU's OpenMP is not linked to: libtorch brings the one that torch itself uses, whatever its name.
    try:
        made = cpp_extension.load(
            cache.MODULE,
            _units(written, temporary),
            extra_cflags=cache.flags(),
            extra_ldflags=["-shared", "-ltorch_python", *cache.more_flags()],
            build_directory=str(temporary),
            with_cuda=False,
            is_python_module=False,
            is_standalone=True,
        )
    except RuntimeError as error:
        # ninja prefixes each command that it runs with "[", and repeats those that fail.
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(("[", "FAILED:"))]
        raise Failed("\n".join(line for line in lines if "-DTORCH_EXTENSION_NAME" not in line)) from None
    return Path(made)


def _try(made: Path, command: Sequence[str]) -> None:
    root = str(Path(__file__).parents[3])
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "KMP_", "GOMP_"))}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    if cache.sanitized():
        # This runtime has to be there before all others; it looks for C++'s exceptions when it begins.
        libraries = [_output([*command, f"-print-file-name={name}"]) for name in ("libasan.so", "libstdc++.so")]
        environment |= {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    environment["MANUAL_MLP_ENGINE"] = "plain"
    done = subprocess.run(
        [sys.executable, "-c", _TRIAL, str(made)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"what was built does not work: {done.stderr.strip() or f'exit status {done.returncode}'}")


def _sweep(at: Path) -> None:
    """Delete what killed builds have left."""
    for path in at.iterdir():
        if path.name.startswith(_TEMPORARY) and path.stat().st_mtime < time.time() - _OLD:
            shutil.rmtree(path, ignore_errors=True)


def _prune(at: Path) -> None:
    """Keep the newest builds: other torches and other states of the sources use theirs."""
    builds = [path for path in at.iterdir() if path.name.startswith("torch-") and path.suffix == ".so"]
    for path in sorted(builds, key=lambda path: -path.stat().st_mtime)[_KEPT:]:
        path.unlink(missing_ok=True)
