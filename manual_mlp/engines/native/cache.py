"""Where builds lie, and their names: one fits one torch, Python, C library, set of flags and state of the sources."""

from __future__ import annotations

import hashlib
import os
import shlex
import sysconfig
from contextlib import suppress
from pathlib import Path

import torch

MODULE = "manual_mlp_native"
SOURCES = Path(__file__).parent
FOLDER, FLAGS = "MANUAL_MLP_CACHE", "MANUAL_MLP_NATIVE_FLAGS"
CARRIED = "built"  # the folder beside the sources in which a platform wheel carries its builds

_VECTORS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"),
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
}
KINDS = (*_VECTORS, "DEFAULT")
_DIGEST = hashlib.sha256().digest_size


def capability() -> str:
    """Return the vector instructions that torch's own kernels use here, of which there are flags; or DEFAULT."""
    found = torch.backends.cpu.get_cpu_capability()
    return found if found in _VECTORS else "DEFAULT"


def more_flags() -> list[str]:
    """List the user's own flags, which go to the compiler and to the linker."""
    return shlex.split(os.environ.get(FLAGS, ""))


def sanitized() -> bool:
    """Tell whether a build ends the process that loads it without ASan's runtime."""
    return any("address" in flag for flag in more_flags())


def flags(kind: str | None = None) -> list[str]:
    """List the flags of the compiler, for this machine's vector instructions or others; torch adds its own."""
    kind = kind or capability()
    vectors = [*_VECTORS.get(kind, ()), f"-DCPU_CAPABILITY={kind}", f"-DCPU_CAPABILITY_{kind}"]
    return [
        "-O3",
        "-g0",
        "-fopenmp",
        "-fvisibility=hidden",
        f"-DTORCH_EXTENSION_NAME={MODULE}",
        *vectors,
        *more_flags(),
    ]


def sources(*endings: str) -> list[Path]:
    """List the files of C++ with these endings."""
    return sorted(path for path in SOURCES.iterdir() if path.suffix in endings)


def parts(kind: str | None = None) -> dict[str, str]:
    """Return what a build has to fit, with its part of the name: for this machine's vector instructions, or others."""
    kind = kind or capability()
    digest = hashlib.sha256("\0".join(flags(kind)).encode())
    for path in sources(".cpp", ".h"):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    libc = "libc"
    with suppress(AttributeError, OSError, ValueError):
        libc = os.confstr("CS_GNU_LIBC_VERSION") or libc
    found = {
        "torch": f"torch-{torch.__version__}-{str(torch.version.git_version)[:10]}",
        "Python": str(sysconfig.get_config_var("SOABI")),
        "platform": sysconfig.get_platform(),
        "C library": libc,
        "vector instructions": kind,
        "sources or flags": digest.hexdigest()[:16],
    }
    return {label: part.replace(" ", "-").replace("/", "-") for label, part in found.items()}


def name(kind: str | None = None) -> str:
    """Return the name of a build that fits, up to its compiler, which is not asked for when one is loaded."""
    return "-".join(parts(kind).values())


def folder() -> Path:
    """Return the folder of all builds, which need not be there.

    Raises:
        OSError: there is no home folder.
    """
    if given := os.environ.get(FOLDER):
        return Path(given).absolute()
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # A relative one is to be ignored.
        return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "manual_mlp"
    except RuntimeError:
        raise FileNotFoundError(f"expected a home folder or {FOLDER}, got neither") from None


def trust(path: Path) -> None:
    """Refuse what others may have written: what is loaded from there runs as this user.

    Raises:
        PermissionError: it is another user's, or others may write it.
        OSError: it is not there.
    """
    found = path.stat()
    if found.st_uid != os.geteuid():
        owner = f"it is user {found.st_uid}'s, and you are {os.geteuid()}"
        raise PermissionError(f"expected {short(path)} to be your own, {owner}: set {FOLDER} to another folder")
    if found.st_mode & 0o022:
        mode = f"its mode is {found.st_mode & 0o777:04o}"
        raise PermissionError(
            f"expected {short(path)} to be writable by you alone, {mode}: chmod go-w, or set {FOLDER}"
        )


def fitting(kind: str | None = None) -> list[Path]:
    """List the user's own builds that fit, the newest first.

    Raises:
        OSError: the folder is not there, or not to be trusted.
    """
    at = folder()
    trust(at)
    return _among(at, kind)


def carried(kind: str | None = None) -> list[Path]:
    """List the builds that fit of those that the package itself carries, as a platform wheel does.

    They are asked for no owner: who may write them may write the Python beside them, which has been imported.
    """
    at = SOURCES / CARRIED
    return _among(at, kind) if at.is_dir() else []


def _among(at: Path, kind: str | None) -> list[Path]:
    # By name, not by a pattern: a version may hold any character.
    start = f"{name(kind)}-"
    found = [path for path in at.iterdir() if path.name.startswith(start) and path.suffix == ".so"]
    return sorted(found, key=lambda path: -path.stat().st_mtime)


def misfit() -> str | None:
    """Say what the build that the package carries does not fit, the nearest of several; None where it carries none."""
    at, here = SOURCES / CARRIED, parts()
    found = sorted(at.glob("*.so")) if at.is_dir() else []
    others = [[label for label, part in here.items() if f"-{part}-" not in f"-{path.name}"] for path in found]
    if not others:
        return None
    nearest = min(range(len(others)), key=lambda index: len(others[index]))
    return f"this package carries a build for another {', another '.join(others[nearest])}: {found[nearest].name}"


def seal(path: Path) -> None:
    """End a file in its SHA-256, which a linker's file bears, and see that it is on the disk."""
    with path.open("r+b") as file:
        digest = hashlib.sha256(file.read()).digest()
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o700)


def whole(path: Path) -> bool:
    """Tell whether a file is as it was sealed: to load half of one would end the process."""
    data = memoryview(path.read_bytes())
    return hashlib.sha256(data[:-_DIGEST]).digest() == data[-_DIGEST:]


def short(text: object) -> str:
    """Write ~ for the home folder."""
    with suppress(RuntimeError):
        home = str(Path.home())
        if len(home) > 1:
            return str(text).replace(home, "~")
    return str(text)
