"""Files in a folder that anybody may have filled: no link is followed, and a new file is whole or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection
from pathlib import Path

# Whatever has taken the file's place meanwhile. Windows lacks two of these.
_READ = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")


def read(path: Path, most: int | None = None) -> bytes:
    """Read a file.

    Args:
        most: bytes that it may have.

    Raises:
        OSError: it is not there, is a link, a folder or a pipe, or has more bytes; the reason is its `strerror`.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a link" if stat.S_ISLNK(found.st_mode) else "it is no file")
    if most is not None and found.st_size > most:
        raise OSError(errno.EFBIG, f"it has {found.st_size} bytes, more than {most}")
    with open(os.open(path, _READ), "rb") as file:
        return file.read()


def is_file(path: Path) -> bool:
    """Tell whether a file is there, and is no link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def write(path: Path, data: bytes) -> str:
    """Write a file so that it is whole or not there, even after a power cut; return its SHA-256.

    A link of that name is replaced.
    """
    replace(path, lambda temporary: write_new(temporary, data))
    sync_folder(path.parent)
    return digest(data)


def write_new(path: Path, data: bytes) -> str:
    """Write a file of a name that there was not, and return its SHA-256; if that fails, it is not there."""
    with path.open("xb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return digest(data)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Let a function make a file under a name of its own, and give it its right one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        make(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep(folder: Path, names: Collection[str]) -> None:
    """Delete what :func:`replace` has left of files of these names when the process was killed."""
    for path in folder.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match and match[1] in names and is_file(path):
            path.unlink(missing_ok=True)


def subfolder(folder: Path, *names: str) -> Path:
    """Make a folder inside a folder, where there is none.

    Raises:
        OSError: a file or a link is in its place.
    """
    for name in names:
        folder = folder / name
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "expected a folder, got a link", str(folder))
        folder.mkdir(exist_ok=True)
    return folder


def sync_folder(folder: Path) -> None:
    """Let what was renamed into a folder outlast a power cut."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digest(data: bytes) -> str:
    """Return the SHA-256, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
