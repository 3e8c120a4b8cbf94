"""A platform wheel: a pure wheel of this package, and in it the builds of its C++ for one torch and Python."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

import torch

from manual_mlp.engines.native import cache

_AT = "manual_mlp/engines/native"


def carry(pure: Path) -> Path:
    """Write a copy of a pure wheel beside it that carries what is built for this torch and Python; return its path.

    It carries a build for each set of vector instructions of which there is one. Its version says for which torch.

    Raises:
        ValueError: it is no pure wheel of this package with these sources of C++, or flags of the user's own are set.
        OSError: nothing is built, it cannot be read, or the copy cannot be written.
    """
    if os.environ.get(cache.FLAGS):
        # They are part of a build's name: where they are not set, it would never be found.
        raise ValueError(f"expected {cache.FLAGS} to be unset for a wheel, got {os.environ[cache.FLAGS]!r}")
    content = _content(pure)
    builds = _builds()
    version = _field(content, "METADATA", "Version")
    release = f"{version}+torch{re.sub('[^a-z0-9]+', '.', torch.__version__.lower()).strip('.')}"
    new = {name.replace(f"-{version}.dist-info/", f"-{release}.dist-info/"): data for name, data in content.items()}
    metadata, wheel, record = (_path(new, name) for name in ("METADATA", "WHEEL", "RECORD"))
    new[metadata] = new[metadata].replace(f"\nVersion: {version}\n".encode(), f"\nVersion: {release}\n".encode(), 1)
    said = new[wheel].decode().replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
    new[wheel] = re.sub("^Tag: .*$", f"Tag: {tag()}", said, flags=re.MULTILINE).encode()
    new |= {f"{_AT}/{cache.CARRIED}/{path.name}": path.read_bytes() for path in builds}
    del new[record]
    new[record] = _record(new.items(), record)
    made = pure.with_name(f"manual_mlp-{release}-{tag()}.whl")
    _write(made, new)
    return made


def tag() -> str:
    """Return the tag of wheels for this Python and platform, such as cp311-cp311-linux_x86_64."""
    abi = f"cp{str(sysconfig.get_config_var('SOABI')).split('-')[1]}"
    platform = re.sub(r"[-.]", "_", sysconfig.get_platform())
    return f"{abi.rstrip('dt')}-{abi}-{platform}"


def _content(pure: Path) -> dict[str, bytes]:
    """Read a wheel, and see that it is what can be added to."""
    if not pure.name.endswith("-py3-none-any.whl"):
        raise ValueError(f"expected a pure wheel, *-py3-none-any.whl, got {pure.name}")
    try:
        with zipfile.ZipFile(pure) as file:
            content = {name: file.read(name) for name in file.namelist() if not name.endswith("/")}
    except zipfile.BadZipFile as error:
        raise ValueError(f"expected a wheel, got {pure}: {error}") from None
    here = {f"{_AT}/{path.name}": path.read_bytes() for path in cache.sources(".cpp", ".h")}
    there = {name for name in content if str(PurePosixPath(name).parent) == _AT and name.endswith((".cpp", ".h"))}
    if {name: content[name] for name in there} != here:
        raise ValueError(f"expected a wheel with the sources of C++ that are built here, got others in {pure.name}")
    return content


def _builds() -> list[Path]:
    """List a build for each set of vector instructions: the user's newest, or else what this package carries."""
    found = []
    for kind in cache.KINDS:
        paths: list[Path] = []
        with suppress(FileNotFoundError):
            paths = cache.fitting(kind)
        found += [path for path in (*paths, *cache.carried(kind)) if cache.whole(path)][:1]
    if not found:
        raise FileNotFoundError("expected a build to carry, got none: python -m manual_mlp build")
    return found


def _path(content: Iterable[str], name: str) -> str:
    """Find a file of a wheel's metadata."""
    found = [path for path in content if re.fullmatch(rf"manual_mlp-[^/]*\.dist-info/{name}", path)]
    if len(found) != 1:
        raise ValueError(f"expected a wheel of manual_mlp with one {name}, got {len(found)}")
    return found[0]


def _field(content: dict[str, bytes], name: str, field: str) -> str:
    found = re.search(rf"^{field}: (.*)$", content[_path(content, name)].decode(), re.MULTILINE)
    if found is None:
        raise ValueError(f"expected {name} of a wheel to tell {field}, got none")
    return found[1].strip()


def _record(files: Iterable[tuple[str, bytes]], own: str) -> bytes:
    """Return the list of a wheel's files, with their digests and sizes; itself is listed without."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for name, data in files:
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        writer.writerow([name, f"sha256={digest}", len(data)])
    writer.writerow([own, "", ""])
    return text.getvalue().encode()


def _write(made: Path, content: dict[str, bytes]) -> None:
    """Write an archive whose bytes depend on its content alone."""
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=made.parent) as temporary:
        path = Path(temporary) / made.name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in content.items():
                entry = zipfile.ZipInfo(name)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
                file.writestr(entry, data)
        path.replace(made)
